//! KVM's structures in a saved state: their bytes, of exactly their size. kvm-bindings alone would fill up one that is cut
//! short and drop what is too much. For `#[serde(with)]`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::BytesDeserializer;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(super) fn serialize<T: Serialize, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    value.serialize(serializer)
}

pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_bytes(Exact(PhantomData))
}

struct Exact<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Exact<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", size_of::<T>())
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<T, E> {
        if bytes.len() != size_of::<T>() {
            return Err(E::invalid_length(bytes.len(), &self));
        }
        T::deserialize(BytesDeserializer::new(bytes))
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_mp_state;

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Saved(#[serde(with = "super")] kvm_mp_state);

    #[test]
    fn a_structure_of_another_size_is_refused() {
        let whole = postcard::to_allocvec(&Saved(kvm_mp_state { mp_state: 0x0403_0201 })).unwrap();
        assert_eq!(whole, [4, 1, 2, 3, 4]);
        assert_eq!(postcard::from_bytes::<Saved>(&whole).unwrap().0.mp_state, 0x0403_0201);
        for other in [&[0][..], &[3, 1, 2, 3], &[5, 1, 2, 3, 4, 5], &[0xff, 0xff, 0xff, 0xff, 0xf]] {
            assert!(postcard::from_bytes::<Saved>(other).is_err(), "{other:?}");
        }
    }
}
