//! Points written to folders and read back.

mod attack;
mod chains;
mod crash;
mod damage;
mod golden;
mod model;
mod round;
