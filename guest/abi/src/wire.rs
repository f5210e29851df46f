//! The encoding: postcard.

use serde::{Deserialize, Serialize};

/// Bytes that do not hold the expected value, or a value that cannot be written.
pub type Error = postcard::Error;

/// Writes a value.
///
/// # Errors
/// When the value has no postcard form, which none of this crate's types does.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    encode_with_room(value, 0)
}

/// As [`encode`], with room for so many bytes that [`append`] will add.
///
/// # Errors
/// As [`encode`].
pub fn encode_with_room<T: Serialize>(value: &T, room: usize) -> Result<Vec<u8>, Error> {
    // Of the right size at once: the guest has no memory for a buffer that grows by doubling.
    let length = postcard::experimental::serialized_size(value)?;
    append(Vec::with_capacity(length + room), value)
}

/// Writes a value behind others. Values one behind the other are a struct with them as its fields.
///
/// # Errors
/// As [`encode`].
pub fn append<T: Serialize>(bytes: Vec<u8>, value: &T) -> Result<Vec<u8>, Error> {
    postcard::to_extend(value, bytes)
}

/// Reads a value, which may have parts of the bytes in it.
///
/// # Errors
/// When the bytes end early or hold something else.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Error> {
    postcard::from_bytes(bytes)
}

/// Length of a value's encoding, in bytes, without writing it.
pub fn encoded_bytes<T: Serialize>(value: &T) -> usize {
    // A value that cannot be written counts as too large for any limit.
    postcard::experimental::serialized_size(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use serde_bytes::ByteBuf;

    use super::*;
    use crate::event::Finish;
    use crate::log::Record;
    use crate::narrowing::{Given, Narrowing};
    use crate::secret::{Piece, Template};
    use crate::{
        Call, Completion, Operation, OperationError, Reply, Site, fs, http, kv, module, narrowing, net, time, workers,
    };

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

    fn narrowing() -> Narrowing {
        let fields = [
            ("hosts", Given::Texts(vec!["https://a.example".into(), String::new()])),
            ("path", Given::Text("/data".into())),
            ("x", Given::Other),
        ];
        Narrowing { fields: fields.map(|(key, given)| (key.to_owned(), given)).into() }
    }

    /// Calls with every kind of field that there is.
    fn calls() -> Vec<Call> {
        let request = http::Request {
            method: "POST".into(),
            url: "https://a.example/x".into(),
            headers: vec![("x-a".into(), ByteBuf::from(b"1")), ("x-b".into(), ByteBuf::new())],
            secret_headers: vec![("authorization".into(), Template { pieces: vec![Piece::Secret("key".into())] })],
            body: Some(b"body".to_vec().into()),
            timeouts: http::Timeouts { connect_ms: Some(u64::MAX), ..http::Timeouts::default() },
            decompress: true,
        };
        let open =
            net::Operation::Open { kind: net::Kind::Socket, target: "udp://a.example:1".into(), timeout_ms: Some(300) };
        let work = workers::Work { module: "./m".into(), file: "a.luau".into(), arguments: vec![1; 3].into() };
        let operations = [
            Operation::Http(http::Operation::Request(request)),
            Operation::Fs(fs::Operation::Write { path: "/data/a".into(), content: b"x".to_vec() }),
            Operation::Kv(kv::Operation::Set { key: b"k\0".to_vec(), value: vec![0xff; 3] }),
            Operation::Time(time::Operation::Wait { seconds: 0.5 }),
            Operation::Module(module::Operation::Find { paths: vec!["a.luau".into(), "b.lua".into()] }),
            Operation::Workers(workers::Operation::Run(work)),
            Operation::Net(open),
            Operation::Net(net::Operation::Read { handle: 1, want: net::Want::Line(80), timeout_ms: None }),
            Operation::Narrow(narrowing::Operation::Check { module: "std:kv".into(), narrowing: narrowing() }),
        ];
        let site = || Some(Site { module: "main.luau".into(), line: 300 });
        let call = |operation: Operation| {
            let narrowing = operation.can_be_narrowed().then(narrowing);
            Call { site: site(), scope: 0, narrowing, operation }
        };
        operations.map(call).into()
    }

    /// Reads bytes as what a guest sends; whether they are a call. What can be read is written and read again as the
    /// same bytes, so that nothing is understood in two ways.
    fn read_as_all(bytes: &[u8]) -> bool {
        let _ = (decode::<Finish>(bytes).is_ok(), decode::<Record>(bytes).is_ok());
        let Ok(call) = decode::<Call>(bytes) else { return false };
        let again = encode(&call).expect("encodes");
        assert_eq!(decode::<Call>(&again).map(|call| encode(&call)), Ok(Ok(again.clone())), "{bytes:?}");
        true
    }

    #[test]
    fn an_operation_of_a_number_that_there_is_not_is_refused() {
        // No site, scope 0, no narrowing, and the number, which takes up to five bytes, with much behind it.
        let numbered = |number: u32| {
            let bytes = [vec![0, 0, 0], encode(&number).expect("encodes"), vec![0; 64]].concat();
            decode::<Call>(&bytes)
        };
        let last = 8;
        assert!(matches!(numbered(last), Ok(Call { operation: Operation::Narrow(_), .. })), "{:?}", numbered(last));
        for number in (last + 1..=1000).chain([u32::MAX / 2, u32::MAX]) {
            assert!(numbered(number).is_err(), "{number}");
        }
        for capability in 0..=last {
            let bytes =
                [vec![0, 0, 0], encode(&capability).expect("encodes"), vec![0xff, 0xff, 0x03], vec![0; 64]].concat();
            assert!(decode::<Call>(&bytes).is_err(), "operation 65535 of {capability}");
        }
    }

    #[test]
    fn bytes_that_were_changed_are_a_message_or_an_error() {
        let originals: Vec<_> = calls().iter().map(|call| encode(call).expect("encodes")).collect();
        // Of xorshift64; the same every time.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 33).expect("31 bits") % below
        };
        let (mut n_read, mut n_refused) = (0, 0);
        for _ in 0..50_000 {
            let mut bytes = originals[random(originals.len())].clone();
            for _ in 0..=random(4) {
                let at = random(bytes.len().max(1)).min(bytes.len());
                match random(6) {
                    0 => bytes.truncate(at),
                    // A length or a number, as large as can be written.
                    1 => drop(bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x0f])),
                    2 => drop(bytes.splice(at..at, [0xff; 11])),
                    3 => drop(bytes.splice(at..at, originals[random(originals.len())].clone())),
                    _ if bytes.is_empty() => {}
                    4 => bytes[at] ^= 1 << random(8),
                    _ => drop(bytes.remove(at)),
                }
            }
            if read_as_all(&bytes) { n_read += 1 } else { n_refused += 1 }
        }
        assert!(n_read > 1000 && n_refused > 10_000, "{n_read} read, {n_refused} refused: the changes show nothing");
    }
}
