//! Sizes as people write them.

use thiserror::Error;

/// A size that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SizeError {
    /// Not a whole number with a known suffix.
    #[error("`{text}` is not a size: use a whole number and K, M, G or T (binary), as in 512M")]
    Malformed {
        /// What was written.
        text: String,
    },
    /// More bytes than 64 bits count.
    #[error("`{text}` is more than 64 bits of bytes")]
    TooLarge {
        /// What was written.
        text: String,
    },
}

/// Reads a size: a decimal number of bytes, or of KiB, MiB, GiB or TiB with the suffix `K`, `M`, `G` or `T` (either
/// case).
///
/// # Errors
/// The text is no such number, or its value exceeds 64 bits.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let malformed = || SizeError::Malformed { text: text.to_owned() };
    let (digits, shift) = match text.as_bytes().last().map(u8::to_ascii_uppercase) {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        Some(b'T') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    let too_large = || SizeError::TooLarge { text: text.to_owned() };
    let number: u64 = digits.parse().map_err(|_| too_large())?;
    number.checked_mul(1 << shift).ok_or_else(too_large)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_binary_and_of_either_case() {
        for (text, bytes) in [("0", 0), ("512", 512), ("1k", 1 << 10), ("512M", 512 << 20), ("6g", 6 << 30), ("2T", 2 << 40)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused_with_the_text() {
        for text in ["", "M", "-1", "+1", "1.5G", "1GB", "0x10", "1 G", "é", "1é"] {
            assert_eq!(parse_size(text), Err(SizeError::Malformed { text: text.to_owned() }), "{text}");
        }
    }

    #[test]
    fn what_overflows_is_refused() {
        for text in ["18446744073709551616", "16777216T"] {
            assert_eq!(parse_size(text), Err(SizeError::TooLarge { text: text.to_owned() }), "{text}");
        }
    }
}
