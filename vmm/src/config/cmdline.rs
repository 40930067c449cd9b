//! The kernel command line: the user's words, and the few that husk adds where the guest could not know otherwise.

use arch::layout::VirtioMmioWindow;

/// What to add to a user's command line.
#[derive(Debug, Default)]
pub(super) struct Additions<'a> {
    /// The root drive, if there is one and no initrd.
    pub(super) root: Option<Root<'a>>,
    /// Devices that no other table names.
    pub(super) devices: &'a [VirtioMmioWindow],
}

/// The drive that holds the root file system.
#[derive(Debug)]
pub(super) struct Root<'a> {
    /// The partition on it, or all of it, which is the first disk.
    pub(super) partuuid: Option<&'a str>,
    pub(super) read_only: bool,
}

/// The command line that the kernel gets: `words` first, husk's own behind them, and what follows a `--` last, since
/// that is the init's.
pub(super) fn compose(words: &str, additions: &Additions) -> String {
    let (kernels, inits) = split_init(words);
    let mut line = kernels.trim_end().to_owned();
    let mut add = |word: &str| {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    };
    if let Some(root) = &additions.root
        && !kernels.split_ascii_whitespace().any(|word| word.starts_with("root="))
    {
        match root.partuuid {
            Some(partuuid) => add(&format!("root=PARTUUID={partuuid}")),
            None => add("root=/dev/vda"),
        }
        add(if root.read_only { "ro" } else { "rw" });
    }
    for device in additions.devices {
        let VirtioMmioWindow { base, size, gsi } = device;
        add(&format!("virtio_mmio.device={}K@{:#x}:{}", size / 1024, base.0, gsi.get()));
    }
    if let Some(inits) = inits {
        add(inits);
    }
    line
}

/// The kernel's own words, and from the lone `--` on the init's.
fn split_init(words: &str) -> (&str, Option<&str>) {
    let mut from = 0;
    while let Some(found) = words[from..].find("--") {
        let at = from + found;
        let alone = |neighbour: Option<char>| neighbour.is_none_or(|c| c.is_ascii_whitespace());
        if alone(words[..at].chars().next_back()) && alone(words[at + 2..].chars().next()) {
            return (&words[..at], Some(&words[at..]));
        }
        from = at + 2;
    }
    (words, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::layout::virtio_mmio_window;

    fn composed(words: &str, root: Option<Root>, devices: u8) -> String {
        let devices: Vec<_> = (0..devices).map_while(virtio_mmio_window).collect();
        compose(words, &Additions { root, devices: &devices })
    }

    #[test]
    fn with_nothing_to_add_the_words_are_the_users() {
        assert_eq!(composed("console=ttyS0 a=\"b c\"", None, 0), "console=ttyS0 a=\"b c\"");
        assert_eq!(composed("", None, 0), "");
    }

    #[test]
    fn devices_are_named_in_the_form_that_linux_reads() {
        assert_eq!(
            composed("quiet", None, 2),
            "quiet virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"
        );
    }

    #[test]
    fn a_root_drive_is_named_unless_the_user_did() {
        let root = |partuuid, read_only| Some(Root { partuuid, read_only });
        assert_eq!(composed("quiet", root(None, false), 0), "quiet root=/dev/vda rw");
        assert_eq!(composed("", root(None, true), 0), "root=/dev/vda ro");
        assert_eq!(composed("q", root(Some("ab-01"), true), 0), "q root=PARTUUID=ab-01 ro");
        assert_eq!(composed("root=/dev/vdb", root(None, true), 0), "root=/dev/vdb");
    }

    #[test]
    fn the_inits_words_stay_last() {
        let root = Some(Root { partuuid: None, read_only: false });
        assert_eq!(composed("quiet -- single root=x", root, 0), "quiet root=/dev/vda rw -- single root=x");
        assert_eq!(composed("a--b --c", None, 1), "a--b --c virtio_mmio.device=4K@0xd0000000:5");
    }
}
