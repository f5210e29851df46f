//! An upstream on loopback, whose paths say what it does. By UDP it echoes.
//!
//! | path | answer |
//! |---|---|
//! | `/gate/N` | once N requests wait at the gate together: proves that they overlap |
//! | `/redirect/STATUS?URL` | a redirect |
//! | `/redirect-hex/STATUS?HEX` | a redirect to what these bytes are |
//! | `/loop` | a redirect to itself |
//! | `/leading` | headers that some clients follow or keep |
//! | `/half` | half of a body, and then nothing |
//! | `/gzip`, `/bomb`, `/gzip-twice`, `/cut-gzip` | packed bodies, see [`super::packed`] |
//! | `/stall` | never: holds the connection open |
//! | `/hold` | never: holds the connection, and sees when the client closes it |
//! | `/closed/N` | how long after this request, in microseconds, the last of N held connections was closed |
//! | `/empty` | closes without an answer |
//! | `/large/N` | a body of N bytes |
//! | anything else | the request's head, and its body after an empty line |

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use super::{echo, packed};

/// A gate opens even if too few come: then the test fails instead of hanging.
const GATE_TIMEOUT: Duration = Duration::from_secs(20);

/// A running upstream. Its threads end with the test process.
pub struct Upstream {
    pub address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Default)]
struct Counts {
    requests: usize,
    at_once: usize,
    most_at_once: usize,
    at_gate: usize,
    opened: usize,
    closed: usize,
}

impl Upstream {
    pub fn start() -> Self {
        let (listener, socket) = echo::bind(echo::LOOPBACK);
        let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Seen::default()));
        thread::spawn(move || echo::datagrams(&socket));
        let shared = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let seen = Arc::clone(&shared);
                // A client that goes away is the test's business.
                thread::spawn(move || drop(serve(stream, &seen)));
            }
        });
        Self { address, seen }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.seen.counts.lock().unwrap().requests
    }

    /// Held connections that the client has closed.
    pub fn closed(&self) -> usize {
        self.seen.counts.lock().unwrap().closed
    }

    /// The most requests that were ever under way together.
    pub fn most_at_once(&self) -> usize {
        self.seen.counts.lock().unwrap().most_at_once
    }
}

fn serve(mut stream: TcpStream, seen: &Seen) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while reader.read_line(&mut head)? > 2 {}
    if !head.ends_with("\r\n\r\n") {
        // A call that was stopped before it had sent its request.
        return Ok(());
    }
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    seen.enter();
    let answer = if path == "/hold" { seen.hold(&mut reader) } else { answer(&path, &head, &body, seen) };
    seen.leave();
    match answer {
        Some(answer) if path == "/half" => {
            stream.write_all(&answer)?;
            // Until the client has had enough.
            std::io::copy(&mut reader, &mut std::io::sink()).map(drop)
        }
        Some(answer) => stream.write_all(&answer),
        None => Ok(()),
    }
}

fn answer(path: &str, head: &str, body: &[u8], seen: &Seen) -> Option<Vec<u8>> {
    if let Some(n) = path.strip_prefix("/gate/") {
        let text = if seen.pass_gate(n.parse().unwrap()) { "together" } else { "alone" };
        return Some(plain(200, text));
    }
    if let Some(text) = path.strip_prefix("/redirect/") {
        let (status, location) = text.split_once('?').unwrap();
        return Some(redirect(status, location.as_bytes()));
    }
    if let Some(text) = path.strip_prefix("/redirect-hex/") {
        let (status, hex) = text.split_once('?').unwrap();
        let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        return Some(redirect(status, &(0..hex.len()).step_by(2).map(digits).collect::<Vec<_>>()));
    }
    if let Some(n) = path.strip_prefix("/closed/") {
        return Some(plain(200, &seen.wait_for_closed(n.parse().unwrap()).as_micros().to_string()));
    }
    if let Some(n) = path.strip_prefix("/large/") {
        return Some(plain(200, &"x".repeat(n.parse().unwrap())));
    }
    match path {
        "/stall" => loop {
            thread::park();
        },
        "/empty" => None,
        "/loop" => Some(redirect("302", b"/loop")),
        "/leading" => Some(answer_with(
            "refresh: 0; url=/elsewhere\r\nalt-svc: h2=\":1\"\r\nlink: </elsewhere>; rel=preload\r\nset-cookie: cookie=1\r\n",
            b"here",
        )),
        "/half" => Some(b"HTTP/1.1 200 x\r\ncontent-length: 10\r\n\r\nhalf".to_vec()),
        "/gzip" => Some(answer_with("content-encoding: gzip\r\n", &packed::gzip(&packed::TEXT.repeat(1000)))),
        "/bomb" => Some(answer_with("content-encoding: gzip\r\n", &packed::gzip(&vec![0; 9 << 20]))),
        "/gzip-twice" => {
            let twice = packed::gzip(&packed::gzip(packed::TEXT));
            Some(answer_with("content-encoding: gzip, gzip\r\n", &twice))
        }
        "/cut-gzip" => {
            let whole = packed::gzip(packed::TEXT);
            Some(answer_with("content-encoding: gzip\r\n", &whole[..whole.len() - 3]))
        }
        _ => Some(plain(200, &format!("{}\n\n{}", head.trim_end(), String::from_utf8_lossy(body)))),
    }
}

fn redirect(status: &str, location: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\nlocation: ");
    [head.as_bytes(), location, b"\r\n\r\n"].concat()
}

fn plain(status: u16, text: &str) -> Vec<u8> {
    let length = text.len();
    format!(
        "HTTP/1.1 {status} x\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}"
    )
    .into_bytes()
}

/// A good answer with further headers, each with its end.
fn answer_with(headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 x\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

// === impl Seen ===

impl Seen {
    fn enter(&self) {
        let mut counts = self.counts.lock().unwrap();
        counts.requests += 1;
        counts.at_once += 1;
        counts.most_at_once = counts.most_at_once.max(counts.at_once);
    }

    fn leave(&self) {
        self.counts.lock().unwrap().at_once -= 1;
    }

    /// Reads until the client closes the connection.
    fn hold(&self, reader: &mut impl Read) -> Option<Vec<u8>> {
        let _ = reader.read_to_end(&mut Vec::new());
        self.counts.lock().unwrap().closed += 1;
        self.changed.notify_all();
        None
    }

    /// Waits until `n` held connections were closed. How long that took.
    fn wait_for_closed(&self, n: usize) -> Duration {
        let begin = Instant::now();
        let counts = self.counts.lock().unwrap();
        let (counts, _) = self.changed.wait_timeout_while(counts, GATE_TIMEOUT, |counts| counts.closed < n).unwrap();
        assert!(counts.closed >= n, "{} of {n} held connections were closed", counts.closed);
        begin.elapsed()
    }

    /// Waits until `n` are at the gate. Whether they came.
    fn pass_gate(&self, n: usize) -> bool {
        let mut counts = self.counts.lock().unwrap();
        counts.at_gate += 1;
        if counts.at_gate == n {
            counts.at_gate = 0;
            counts.opened += 1;
            self.changed.notify_all();
            return true;
        }
        let opened = counts.opened;
        let (mut counts, timeout) =
            self.changed.wait_timeout_while(counts, GATE_TIMEOUT, |counts| counts.opened == opened).unwrap();
        if timeout.timed_out() {
            counts.at_gate -= 1;
        }
        !timeout.timed_out()
    }
}
