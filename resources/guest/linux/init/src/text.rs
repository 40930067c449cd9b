//! Text of bounded length, and the console lines made of it. A line goes out in one system call, newline included, so that
//! nothing the kernel prints can split it.

use core::ffi::CStr;
use core::fmt::{self, Display, Write};

use crate::sys;

/// Text that is cut at `N` bytes. It is built only from `str`s, and cut only between characters.
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// The formatted text, cut where it is full.
    pub(crate) fn of(args: fmt::Arguments<'_>) -> Self {
        let mut text = Self::new();
        // A cut text is what the type promises, not a failure.
        let _ = text.write_fmt(args);
        text
    }

    /// Adds one `key=value` with the blank that parts it from what stands before.
    pub(crate) fn fact(&mut self, args: fmt::Arguments<'_>) {
        let _ = self.write_char(' ');
        let _ = self.write_fmt(args);
    }

    pub(crate) fn as_str(&self) -> &str {
        self.bytes.get(..self.len).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    /// The text for the kernel, or `None` where it filled the buffer to the last byte.
    pub(crate) fn as_cstr(&self) -> Option<&CStr> {
        CStr::from_bytes_until_nul(&self.bytes).ok()
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = N - self.len;
        let kept = &text[..text.floor_char_boundary(room)];
        if let Some(place) = self.bytes.get_mut(self.len..self.len + kept.len()) {
            place.copy_from_slice(kept.as_bytes());
            self.len += kept.len();
        }
        if kept.len() == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

impl<const N: usize> Display for Text<N> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Bytes from outside as text for one console line: what is not printable ASCII becomes `?`.
pub(crate) struct Printable<'a>(pub(crate) &'a [u8]);

impl Display for Printable<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0 {
            let shown = if byte == b' ' || byte.is_ascii_graphic() { char::from(byte) } else { '?' };
            formatter.write_char(shown)?;
        }
        Ok(())
    }
}

/// The longest console line in bytes; what is longer is cut.
const LINE_MAX: usize = 1024;

/// Puts one line on the console. [`say!`](say) is its short form.
pub(crate) fn say_line(args: fmt::Arguments<'_>) {
    let line = Text::<{ LINE_MAX - 1 }>::of(args);
    let mut out = [b'\n'; LINE_MAX];
    let text = line.as_str().as_bytes();
    if let Some(place) = out.get_mut(..text.len()) {
        place.copy_from_slice(text);
    }
    let mut rest = out.get(..=text.len()).unwrap_or_default();
    while !rest.is_empty() {
        // A console that takes nothing leaves nobody to tell.
        let Ok(written) = sys::write(sys::CONSOLE, rest) else {
            return;
        };
        rest = rest.get(written..).unwrap_or_default();
    }
}

/// Puts one formatted line on the console.
macro_rules! say {
    ($($args:tt)*) => { $crate::text::say_line(format_args!($($args)*)) };
}
pub(crate) use say;
