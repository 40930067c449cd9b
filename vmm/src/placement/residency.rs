//! Where guest memory is: the node of every page that is there, as move_pages(2) tells it, and how much of it is of which
//! kind, as /proc/self/smaps does. Nothing is touched by looking.
#![expect(unsafe_code, reason = "move_pages has no safe interface in libc")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ptr;

use super::apply::Span;
use crate::epoch::{self, PAGE_BYTES};

/// Bytes that are there, by node.
pub(super) type ByNode = BTreeMap<u16, u64>;

/// Pages of a region that are looked at where a sample is enough.
const SAMPLE_PAGES: u64 = 16384;

/// Addresses that the kernel is asked about at once.
const BATCH: usize = 4096;

/// The nodes of the pages of `page_bytes` bytes in a span. Pages that are not there are not counted.
pub(super) fn by_node(span: Span, page_bytes: u64) -> io::Result<ByNode> {
    by_node_of_every(span, page_bytes, 1)
}

/// As [`by_node`], of some of the pages only, evenly spread: at most [`SAMPLE_PAGES`]. Bytes are those of the pages looked at.
pub(super) fn by_node_of_some(span: Span, page_bytes: u64) -> io::Result<ByNode> {
    by_node_of_every(span, page_bytes, (span.bytes / page_bytes).div_ceil(SAMPLE_PAGES).max(1))
}

/// The pages of a span that are of the host's choice, or transparent huge ones: those that are of 4 KiB, and those that are
/// of 2 MiB. `None` from a kernel that does not tell (before Linux 6.7).
pub(super) fn by_size(span: Span) -> io::Result<Option<[ByNode; 2]>> {
    let host = span.host as u64;
    let huge = match epoch::huge(host..host + span.bytes) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => return Ok(None),
        huge => huge?,
    };
    let mut huge = huge.into_iter().peekable();
    let [mut small, mut large] = [ByNode::new(), ByNode::new()];
    for_every(span, PAGE_BYTES, 1, |address, node| {
        while huge.next_if(|range| range.end <= address).is_some() {}
        let is_huge = huge.peek().is_some_and(|range| range.contains(&address));
        *if is_huge { &mut large } else { &mut small }.entry(node).or_default() += PAGE_BYTES;
    })?;
    Ok(Some([small, large]))
}

fn by_node_of_every(span: Span, page_bytes: u64, stride: u64) -> io::Result<ByNode> {
    let mut nodes = ByNode::new();
    for_every(span, page_bytes, stride, |_, node| *nodes.entry(node).or_default() += page_bytes)?;
    Ok(nodes)
}

/// Gives `take` the address and the node of every `stride`th page of a span that is there, in order.
fn for_every(span: Span, page_bytes: u64, stride: u64, mut take: impl FnMut(u64, u16)) -> io::Result<()> {
    let mut addresses = Vec::with_capacity(BATCH);
    let mut next = 0;
    while next < span.bytes {
        addresses.clear();
        while addresses.len() < BATCH && next < span.bytes {
            addresses.push(span.host + usize::try_from(next).expect("a 64-bit host addresses 64 bits"));
            next += page_bytes * stride;
        }
        for (&address, status) in addresses.iter().zip(statuses(&addresses)?) {
            if let Ok(node) = u16::try_from(status) {
                take(address as u64, node);
            }
        }
    }
    Ok(())
}

/// The node of each address's page, or a negative error number where there is none.
fn statuses(addresses: &[usize]) -> io::Result<Vec<libc::c_int>> {
    const SELF: libc::pid_t = 0;
    let mut statuses = vec![-libc::ENOENT; addresses.len()];
    // SAFETY: without nodes to move to, the kernel only writes one status for each of the addresses, for which there is room.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            SELF,
            addresses.len(),
            addresses.as_ptr(),
            ptr::null::<libc::c_int>(),
            statuses.as_mut_ptr(),
            0 as libc::c_int,
        )
    } < 0;
    // ENOENT: none of them is there.
    match io::Error::last_os_error() {
        error if failed && error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(statuses),
    }
}

/// What kinds of pages there are, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Kinds {
    /// Transparent HugePages that one entry of the page tables maps.
    pub(super) transparent: u64,
    /// Pages of a HugePage pool.
    pub(super) pool: u64,
    /// Locked.
    pub(super) locked: u64,
    /// Swapped out.
    pub(super) swapped: u64,
    /// Merged with equal pages.
    pub(super) merged: u64,
    /// Mappings whose pages the kernel may merge.
    pub(super) mergeable: u64,
    /// Mappings that are part of a core dump.
    pub(super) dumpable: u64,
}

/// The kinds of the pages of some spans.
pub(super) fn kinds(spans: &[Span]) -> io::Result<Kinds> {
    kinds_in(BufReader::new(File::open("/proc/self/smaps")?), spans)
}

fn kinds_in(smaps: impl BufRead, spans: &[Span]) -> io::Result<Kinds> {
    let mut kinds = Kinds::default();
    // What the spans have of the mapping that is told of, in bytes.
    let mut covered = 0;
    for line in smaps.lines() {
        let line = line?;
        let mut words = line.split_ascii_whitespace();
        let Some(key) = words.next() else { continue };
        let Some(field) = key.strip_suffix(':') else {
            covered = range(key).map_or(0, |mapping| spans.iter().map(|span| overlap(mapping, span)).sum());
            continue;
        };
        if field == "VmFlags" {
            let flags: Vec<&str> = words.collect();
            kinds.mergeable += if flags.contains(&"mg") { covered } else { 0 };
            kinds.dumpable += if flags.contains(&"dd") { 0 } else { covered };
            continue;
        }
        let place = match field {
            "AnonHugePages" | "ShmemPmdMapped" | "FilePmdMapped" => &mut kinds.transparent,
            "Private_Hugetlb" | "Shared_Hugetlb" => &mut kinds.pool,
            "Locked" => &mut kinds.locked,
            "Swap" => &mut kinds.swapped,
            "KSM" => &mut kinds.merged,
            _ => continue,
        };
        if covered > 0
            && let Some(kib) = words.next().and_then(|value| value.parse::<u64>().ok())
        {
            *place += kib * 1024;
        }
    }
    Ok(kinds)
}

/// How much a mapping and a span have in common, in bytes.
fn overlap((start, end): (u64, u64), span: &Span) -> u64 {
    let host = span.host as u64;
    end.min(host + span.bytes).saturating_sub(start.max(host))
}

/// The addresses of a mapping from its first line.
fn range(word: &str) -> Option<(u64, u64)> {
    let (start, end) = word.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_mappings_of_the_spans_count() {
        let smaps = "\
1000-3000 rw-p 00000000 00:00 0
Rss:                   8 kB
AnonHugePages:         4 kB
Locked:                1 kB
KSM:                   2 kB
VmFlags: rd wr mg
3000-5000 rw-s 00000000 00:0e 7   /anon_hugepage (deleted)
Shared_Hugetlb:       16 kB
Swap:                  2 kB
VmFlags: rd wr sh dd
9000-a000 rw-p 00000000 00:00 0   [heap]
AnonHugePages:       999 kB
Swap:                999 kB
VmFlags: rd wr mg
";
        let spans = [Span { guest: 0, host: 0x2000, bytes: 0x2000 }];
        let kinds = kinds_in(smaps.as_bytes(), &spans).unwrap();
        let flags = Kinds { merged: 2048, mergeable: 4096, dumpable: 4096, ..Kinds::default() };
        assert_eq!(kinds, Kinds { transparent: 4096, pool: 16384, locked: 1024, swapped: 2048, ..flags });
        assert_eq!(kinds_in(smaps.as_bytes(), &[]).unwrap(), Kinds::default());
    }

    #[test]
    fn a_page_has_a_node_once_it_is_there() {
        let pages = vec![7_u8; 64 << 10].into_boxed_slice();
        let start = (pages.as_ptr().expose_provenance()).next_multiple_of(4096);
        let span = Span { guest: 0, host: start, bytes: 32 << 10 };
        let nodes = by_node(span, 4096).unwrap();
        assert_eq!(nodes.values().sum::<u64>(), 32 << 10, "{nodes:?}");
        assert_eq!(by_size(span).unwrap(), Some([nodes, ByNode::new()]));
        drop(pages);
    }
}
