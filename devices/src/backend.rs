//! What faces the host, which can fail at any call.

pub mod block;
pub(crate) mod burst;
pub mod memory;
pub mod net;
