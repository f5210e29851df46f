//! The encoding: postcard.

use serde::{Serialize, de::DeserializeOwned};

/// Bytes that do not hold the expected value, or a value that cannot be written.
pub type Error = postcard::Error;

/// Writes a value.
///
/// # Errors
/// When the value has no postcard form, which none of this crate's types does.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    // Of the right size at once: the guest has no memory for a buffer that grows by doubling.
    let length = postcard::experimental::serialized_size(value)?;
    postcard::to_extend(value, Vec::with_capacity(length))
}

/// Reads a value.
///
/// # Errors
/// When the bytes end early or hold something else.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    postcard::from_bytes(bytes)
}

/// Length of a value's encoding, in bytes, without writing it.
pub fn encoded_bytes<T: Serialize>(value: &T) -> usize {
    // A value that cannot be written counts as too large for any limit.
    postcard::experimental::serialized_size(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Completion, Operation, OperationError, Reply, fs, kv, time};

    #[test]
    fn what_is_written_is_read_back() {
        let operation = Operation::Kv(kv::Operation::Set { key: b"k\0".to_vec(), value: vec![0xff; 3] });
        assert_eq!(decode::<Operation>(&encode(&operation).expect("encodes")), Ok(operation));
        let batch = vec![
            Completion { id: 7, outcome: Ok(Reply::Time(time::Reply::Waited { seconds: 0.5 })) },
            Completion { id: u32::MAX, outcome: Err(OperationError::limit("operations", "over the limit")) },
        ];
        assert_eq!(decode::<Vec<Completion>>(&encode(&batch).expect("encodes")), Ok(batch));
    }

    #[test]
    fn every_prefix_of_a_message_is_refused() {
        let operation = Operation::Fs(fs::Operation::Write { path: "/data/a".into(), content: b"x".to_vec() });
        let bytes = encode(&operation).expect("encodes");
        for end in 0..bytes.len() {
            assert!(decode::<Operation>(&bytes[..end]).is_err(), "prefix of {end} bytes");
        }
    }
}
