use super::*;
use proptest::prelude::*;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..400)
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
    fn a_hostile_driver_of_an_entropy_device_gets_nowhere(bytes in bytes()) {
        entropy(&bytes);
    }
}
