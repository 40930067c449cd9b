//! Points written to folders and read back.

mod crash;
mod model;
mod round;
