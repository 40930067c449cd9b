//! Random requests against a reference model of a disk.

use super::*;
use proptest::prelude::*;

/// Lengths of the pieces of a request, and what its header says.
#[derive(Clone, Debug)]
struct Random {
    kind: u32,
    sector: u64,
    header_cut: usize,
    out: Vec<u32>,
    input: Vec<u32>,
}

fn random_request() -> impl Strategy<Value = Random> {
    let kind =
        prop_oneof![4 => Just(IN), 4 => Just(OUT), 1 => Just(FLUSH_REQUEST), 1 => Just(GET_ID), 1 => any::<u32>()];
    let sector = prop_oneof![6 => 0..SECTORS, 1 => SECTORS - 2..SECTORS + 2, 1 => any::<u64>()];
    let piece = || prop_oneof![4 => Just(512_u32), 1 => Just(1024_u32), 2 => 1..600_u32, 1 => Just(256_u32)];
    let header_cut = prop_oneof![6 => Just(16_usize), 1 => 0..16_usize];
    let (out, input) = (prop::collection::vec(piece(), 0..4), prop::collection::vec(piece(), 0..4));
    (kind, sector, header_cut, out, input).prop_map(|(kind, sector, header_cut, out, input)| Random {
        kind,
        sector,
        header_cut,
        out,
        input,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A reference model of a disk: random chains never panic, never touch bytes outside the described buffers, and
    /// the status is always right.
    #[test]
    fn random_requests_agree_with_a_model(requests in prop::collection::vec(random_request(), 1..16)) {
        let mut bench = Bench::new();
        let mut model = bench.disk();
        for Random { kind, sector, header_cut, out, input } in requests {
            let mut header = [0; 16];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[8..].copy_from_slice(&sector.to_le_bytes());
            let mut chain = Vec::new();
            if header_cut > 0 {
                let len = u32::try_from(header_cut).unwrap();
                chain.push(Buffer::Readable(bench.driver.place(&header[..header_cut]), len));
            }
            let mut readable = header[..header_cut].to_vec();
            for (at, len) in (0_u8..).zip(&out) {
                let bytes = vec![0x80 | at; usize::try_from(*len).unwrap()];
                chain.push(Buffer::Readable(bench.driver.place(&bytes), *len));
                readable.extend(bytes);
            }
            // Each writable piece lies between guards.
            let mut pieces = Vec::new();
            for len in &input {
                let len = usize::try_from(*len).unwrap();
                let guarded = bench.driver.place(&vec![UNWRITTEN; len + 32]);
                let start = GuestAddress(guarded.0 + 16);
                chain.push(Buffer::Writable(start, u32::try_from(len).unwrap()));
                pieces.push((guarded, len));
            }
            if chain.is_empty() {
                continue;
            }
            let used = bench.driver.run(0, &chain);

            let mut writable = Vec::new();
            for (guarded, len) in pieces {
                let bytes = bench.driver.bytes_at(guarded, len + 32);
                prop_assert_eq!(&bytes[..16], [UNWRITTEN; 16], "before a buffer");
                prop_assert_eq!(&bytes[16 + len..], [UNWRITTEN; 16], "behind a buffer");
                writable.extend_from_slice(&bytes[16..16 + len]);
            }
            let Some((status, data)) = writable.split_last() else {
                prop_assert_eq!(used.written, 0);
                continue;
            };
            let expected = expect(&mut model, &readable, data.len());
            prop_assert_eq!(*status, expected.status);
            let filled = expected.data.len();
            prop_assert_eq!(&data[..filled], &expected.data);
            prop_assert!(data[filled..].iter().all(|byte| *byte == UNWRITTEN));
            prop_assert_eq!(used.written, u32::try_from(filled + 1).unwrap());
        }
        prop_assert_eq!(bench.disk(), model);
        prop_assert_eq!(bench.driver.status() & 0x40, 0);
    }
}

struct Expected {
    status: u8,
    data: Vec<u8>,
}

/// What a disk answers to a request, said in another way than the device does.
fn expect(disk: &mut [u8], readable: &[u8], room: usize) -> Expected {
    let fails = |status| Expected { status, data: Vec::new() };
    let Some((header, out)) = readable.split_at_checked(16) else {
        return fails(IOERR);
    };
    // The headers of this test stand alone in their first piece or are cut, and then other bytes follow.
    let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
    let sector = u128::from(u64::from_le_bytes(header[8..].try_into().unwrap()));
    let range = |len: usize| {
        let start = sector * 512;
        let end = start + u128::try_from(len).unwrap();
        let fits = len > 0 && len.is_multiple_of(512) && end <= u128::from(SECTORS * 512);
        fits.then(|| usize::try_from(start).unwrap()..usize::try_from(end).unwrap())
    };
    match kind {
        IN => range(room).map_or(fails(IOERR), |range| Expected { status: OK, data: disk[range].to_vec() }),
        OUT => match range(out.len()) {
            None => fails(IOERR),
            Some(range) => {
                disk[range].copy_from_slice(out);
                fails(OK)
            }
        },
        FLUSH_REQUEST => fails(OK),
        GET_ID if room >= 20 => Expected { status: OK, data: DiskName::new("disk0").serial.to_vec() },
        GET_ID => fails(IOERR),
        _ => fails(UNSUPP),
    }
}
