//! What husk does with a mistake: one line, code 1, and nothing created or changed.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::fs;

use super::folder::Folder;
use super::guest::probe;
use super::{HUSK, Launch, through_shell};

/// A line that says what to do has one of these.
const ADVICE: &[&str] = &[
    "add ",
    "ask for ",
    "at least",
    "at most",
    "build it",
    "check ",
    "choose ",
    "copy it",
    "create ",
    "end ",
    "enlarge ",
    "give ",
    "grow ",
    "link it",
    "load ",
    "make ",
    "must be",
    "name ",
    "pad ",
    "remove ",
    "shorten ",
    "stop ",
    "strip ",
    "truncate ",
    "use ",
    "wait ",
    "write ",
];

/// Husk says no with code 1 and one line that has `parts` and an advice, and leaves `folder`, where it runs, as it was.
#[track_caller]
pub(crate) fn refused(folder: &Folder, launch: Launch, parts: &[&str]) {
    let before = folder.snapshot();
    let ended = launch.folder(folder.path()).end();
    assert_eq!(ended.code(), Some(1), "{ended}");
    assert_eq!(ended.text(), "", "no guest ran");
    let line = ended.message();
    for part in parts {
        assert!(line.contains(part), "`{part}` in: {line}");
    }
    // Only what follows the names counts: a path may hold any word.
    let advice = line.rsplit(": ").next().unwrap();
    assert!(ADVICE.iter().any(|word| advice.contains(word)), "what would fix it, at the end of: {line}");
    assert_eq!(folder.snapshot(), before, "something was created or changed");
}

/// The probe with these options, which it would boot with if they were right.
pub(crate) fn with<'a>(options: impl IntoIterator<Item = &'a str>) -> Launch {
    probe("end=poweroff").args(options)
}

/// `launch` as a user with no rights, who may not be able to reach husk where it was built: a copy of it in `folder`.
pub(crate) fn as_nobody(folder: &Folder, launch: &Launch) -> Launch {
    fs::copy(HUSK, folder.path().join("husk")).unwrap();
    let nobody = "exec setpriv --reuid 65534 --regid 65534 --clear-groups";
    through_shell(&format!(r#"shift; {nobody} {} "$@""#, folder.at("husk")), launch)
}
