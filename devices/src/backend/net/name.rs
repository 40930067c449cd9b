//! Names of network interfaces, as the kernel takes them.

use std::fmt;

/// The most bytes of a name (`IFNAMSIZ` less the zero at its end).
const BYTES_MAX: usize = 15;

/// The name of a network interface, which may exist or not.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// None if no interface can be called `name`: it is longer than 15 bytes or empty, or has something else in it than
    /// printable ASCII without space, `/`, `:` and `%` (the kernel makes names of patterns with `%`).
    pub fn new(name: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
        let good = (1..=BYTES_MAX).contains(&name.len()) && name.bytes().all(plain) && name != "." && name != "..";
        good.then(|| Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a field of kernel structures, zeroes behind it.
    pub(super) fn field(&self) -> [libc::c_char; libc::IFNAMSIZ] {
        let mut field = [0; libc::IFNAMSIZ];
        for (place, byte) in field.iter_mut().zip(self.0.bytes()) {
            *place = libc::c_char::try_from(byte).expect("the name is ASCII");
        }
        field
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_kernel_takes_as_it_is_is_a_name() {
        for good in ["t", "tap0", "vm-1.net_0", "123456789012345", "a@b"] {
            assert_eq!(InterfaceName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "1234567890123456", "tap%d", "a/b", "a:b", "a b", "a\n", "a\0", "tapö"] {
            assert_eq!(InterfaceName::new(bad), None, "{bad:?}");
        }
        let field = InterfaceName::new("ab").unwrap().field();
        assert_eq!((field[0], field[1], field[2..].iter().all(|byte| *byte == 0)), (97, 98, true));
    }
}
