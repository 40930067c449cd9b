use super::*;
use crate::virtio::transport::MmioState;
use proptest::prelude::*;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..400)
}

fn flips() -> impl Strategy<Value = Vec<prop::sample::Index>> {
    prop::collection::vec(any::<prop::sample::Index>(), 2..6)
}

/// A count that a file invents costs nothing before its elements are there.
#[test]
fn a_state_of_countless_queues_is_none() {
    // Status, features, selected queue, and then a count of 2^63 and no queue.
    let bytes = [&[0, 0, 0, 0xff][..], &[0xff; 8], &[0x00]].concat();
    assert!(postcard::from_bytes::<MmioState>(&bytes).is_err());
    let bytes = [&[0, 0, 0][..], &[0x80; 9], &[0x01]].concat();
    assert!(postcard::from_bytes::<MmioState>(&bytes).is_err());
}

#[test]
fn a_state_that_is_cut_short_is_none() {
    for bytes in saved_states() {
        for len in 0..bytes.len() {
            assert!(postcard::from_bytes::<MmioState>(&bytes[..len]).is_err(), "{len} of {}", bytes.len());
        }
        assert!(bytes.len() < 512, "{} bytes", bytes.len());
    }
}

#[test]
fn a_state_with_any_bit_flipped_is_refused_or_outlived() {
    for mut bytes in saved_states() {
        state(&bytes);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            state(&bytes);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_hostile_driver_of_a_queue_gets_nowhere(bytes in bytes()) {
        queue(&bytes);
    }

    #[test]
    fn a_hostile_driver_of_a_transport_gets_nowhere(bytes in bytes()) {
        registers(&bytes);
    }

    #[test]
    fn a_hostile_driver_of_a_disk_gets_nowhere(bytes in bytes()) {
        disk(&bytes);
    }

    #[test]
    fn a_hostile_driver_of_a_network_card_gets_nowhere(bytes in bytes()) {
        net(&bytes);
    }

    #[test]
    fn a_hostile_file_gets_nowhere(seed in any::<prop::sample::Index>(), flips in flips()) {
        let states = saved_states();
        let mut bytes = seed.get(&states).clone();
        for flip in flips {
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        state(&bytes);
    }

    #[test]
    fn a_hostile_driver_of_an_entropy_device_gets_nowhere(bytes in bytes()) {
        entropy(&bytes);
    }
}
