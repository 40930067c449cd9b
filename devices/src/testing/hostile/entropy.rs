//! An attack on the entropy device.

use vm_memory::GuestAddress;

use super::attack::{Attack, Victim};
use super::input::Input;
use super::territory::{DATA, Territory, UPPER};
use crate::testing::{Buffer, FakeDriver};
use crate::virtio::rng::Rng;
use crate::virtio::worker::IoThread;

struct Entropy {
    _thread: IoThread,
}

/// Attacks the entropy device.
///
/// # Panics
/// If the attack gets anywhere.
pub fn entropy(bytes: &[u8]) {
    let thread = IoThread::spawn("husk-io-victim").expect("a test has threads");
    let rng = Rng::new("victim", None, thread.handle());
    Attack::run(Box::new(rng), Entropy { _thread: thread }, Input::new(bytes));
}

impl Victim for Entropy {
    const QUEUES: u16 = 1;

    fn answers(&self, _queue: u16) -> bool {
        true
    }

    fn plausible(&mut self, _queue: u16, input: &mut Input<'_>, _territory: &mut Territory) -> Vec<Buffer> {
        let base = input.choose(&[DATA, UPPER]);
        let pieces = 1 + input.byte() % 4;
        let mut piece = || {
            let address = GuestAddress(base + 64 * u64::from(input.byte()));
            Buffer::Writable(address, 1 + u32::from(input.half() % 3000))
        };
        (0..pieces).map(|_| piece()).collect()
    }

    /// The host's generator has no moods.
    fn stir(&mut self, _input: &mut Input<'_>) {}

    fn relieve(&mut self) {}

    fn serve_honestly(&mut self, driver: &mut FakeDriver) {
        driver.initialize(u64::MAX, &[16]);
        let data = driver.place(&[0; 64]);
        assert_eq!(driver.run(0, &[Buffer::Writable(data, 64)]).written, 64, "an honest driver gets entropy");
        assert_ne!(driver.bytes_at(data, 64), [0; 64], "64 random bytes are not all zero");
    }
}
