//! Drivers that break every rule: bytes of a property test or of a fuzzer, read as what such a driver does through
//! registers and rings, and what must hold all the same.
//!
//! | entry | attacks | what must hold |
//! | --- | --- | --- |
//! | [`queue()`] | a queue, without a device | chains lie in memory and go back once; a retired queue stays silent |
//! | [`registers()`] | a transport | the status register is the specification's; the device's contract is kept |
//! | [`disk()`], [`net()`], [`entropy()`] | a device on its I/O thread | only memory that was offered is written; each chain comes back once; a reset mends all |
//! | [`state()`] | what takes a saved state over | it is refused, or saved again as it was; a reset mends all |
//!
//! Each takes any bytes and panics when something does not hold. Where bytes run out they read as zeroes, so that every
//! prefix of an input means the same actions, and a shorter input is a simpler attack.

mod attack;
mod card;
mod disk;
mod entropy;
mod input;
mod ledger;
mod queue;
mod registers;
mod state;
mod territory;
#[cfg(test)]
mod tests;

pub use card::net;
pub use disk::disk;
pub use entropy::entropy;
pub use queue::queue;
pub use registers::registers;
pub use state::{saved_states, state};
