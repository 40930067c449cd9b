//! A queue against a model of three lists, and against random rings.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

/// What a driver and a device do to a queue.
#[derive(Clone, Debug)]
enum Step {
    Add { readable: Vec<u32>, writable: Vec<u32>, indirect: bool },
    Pop,
    Use { which: usize, written: u32 },
    Publish,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let lens = || prop::collection::vec(1..5000_u32, 0..4);
    prop_oneof![
        3 => (lens(), lens(), any::<bool>())
            .prop_map(|(readable, writable, indirect)| Step::Add { readable, writable, indirect }),
        3 => Just(Step::Pop),
        3 => (any::<usize>(), any::<u32>()).prop_map(|(which, written)| Step::Use { which, written }),
        2 => Just(Step::Publish),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    /// The model: three lists of chains. Available ones come out in order, used ones come back in order of use.
    #[test]
    fn a_queue_is_three_lists(steps in prop::collection::vec(step(), 1..200), event_idx in any::<bool>()) {
        let features = INDIRECT | if event_idx { EVENT_IDX } else { 0 };
        let mut bench = Bench::new(16, features);
        let memory = bench.queue.memory().clone();
        let (mut available, mut flying, mut hidden) = (VecDeque::new(), Vec::new(), VecDeque::new());
        for step in steps {
            match step {
                Step::Add { readable, writable, indirect } => {
                    let needed = readable.len() + writable.len();
                    if needed == 0 || bench.driver.free() < needed {
                        continue;
                    }
                    let readable_sum: u32 = readable.iter().sum();
                    let writable_sum: u32 = writable.iter().sum();
                    let address = GuestAddress(DATA);
                    let buffers: Vec<_> = readable.into_iter().map(|len| Buffer::Readable(address, len))
                        .chain(writable.into_iter().map(|len| Buffer::Writable(address, len))).collect();
                    let table = GuestAddress(TABLE.0 + 256 * u64::try_from(available.len() + flying.len()).unwrap());
                    let head = if indirect && available.is_empty() {
                        bench.driver.add_indirect(table, &buffers)
                    } else {
                        bench.driver.add(&buffers)
                    };
                    available.push_back((head, readable_sum, writable_sum));
                }
                Step::Pop => {
                    let popped = bench.pop().unwrap();
                    let expected = available.pop_front();
                    prop_assert_eq!(popped, expected.is_some());
                    if let Some(expected) = expected {
                        let chain = &bench.chain;
                        prop_assert_eq!((chain.head(), chain.readable_len(), chain.writable_len()), expected);
                        flying.push(expected.0);
                    }
                }
                Step::Use { which, written } if !flying.is_empty() => {
                    let head = flying.remove(which % flying.len());
                    bench.queue.add_used(head, written);
                    hidden.push_back(Used { head, written });
                }
                Step::Use { .. } => {}
                Step::Publish => {
                    bench.queue.publish();
                    while let Some(used) = bench.driver.take_used() {
                        prop_assert_eq!(Some(used), hidden.pop_front());
                    }
                    prop_assert!(hidden.is_empty());
                }
                Step::Restart if flying.is_empty() && hidden.is_empty() => {
                    let state = bench.queue.state();
                    bench.queue = bench.driver.config(0, 256).validate(&memory, features, state).unwrap();
                }
                Step::Restart => {}
            }
            prop_assert_eq!(usize::from(bench.queue.in_flight()), flying.len());
        }
    }

    /// Whatever lies in the rings: no panic, no loop, and no segment that is not guest memory.
    #[test]
    fn random_rings_never_panic(
        descriptors in prop::collection::vec((any::<u64>(), any::<u32>(), 0..8_u16, 0..20_u16, 0..4_u8), 16),
        heads in prop::collection::vec(0..20_u16, 16),
        index in 0..20_u16,
    ) {
        let mut bench = Bench::new(16, INDIRECT);
        for (at, (address, len, flags, next, kind)) in (0..).zip(descriptors) {
            let (address, len) = match kind {
                0 => (address, len),
                1 => (RING.0 + address % 512, len % 512),
                _ => (address % (1 << 20), len % 4096),
            };
            bench.driver.write_descriptor(at, Descriptor { address, len, flags, next });
        }
        for head in heads {
            bench.driver.make_available(head);
        }
        bench.driver.publish_avail_index(index);
        for _ in 0..32 {
            let Ok(true) = bench.pop() else { break };
            for segment in bench.chain.readable().iter().chain(bench.chain.writable()) {
                let mut bytes = vec![0; usize::try_from(segment.len()).unwrap()];
                bench.queue.memory().read_slice(&mut bytes, segment.address()).unwrap();
            }
            prop_assert!(bench.chain.readable().len() + bench.chain.writable().len() <= CHAIN_SEGMENTS_MAX);
        }
    }
}
