//! An upstream on loopback, whose paths say what it does.
//!
//! | path | answer |
//! |---|---|
//! | `/gate/N` | once N requests wait at the gate together: proves that they overlap |
//! | `/redirect/STATUS?URL` | a redirect |
//! | `/stall` | never: holds the connection open |
//! | `/hold` | never: holds the connection, and sees when the client closes it |
//! | `/closed/N` | how long after this request, in microseconds, the last of N held connections was closed |
//! | `/empty` | closes without an answer |
//! | `/large/N` | a body of N bytes |
//! | anything else | the request's head, and its body after an empty line |

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

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
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Seen::default()));
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
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    seen.enter();
    let answer = if path == "/hold" { seen.hold(&mut reader) } else { answer(&path, &head, &body, seen) };
    seen.leave();
    match answer {
        Some(answer) => stream.write_all(answer.as_bytes()),
        None => Ok(()),
    }
}

fn answer(path: &str, head: &str, body: &[u8], seen: &Seen) -> Option<String> {
    if let Some(n) = path.strip_prefix("/gate/") {
        let text = if seen.pass_gate(n.parse().unwrap()) { "together" } else { "alone" };
        return Some(plain(200, text));
    }
    if let Some(redirect) = path.strip_prefix("/redirect/") {
        let (status, location) = redirect.split_once('?').unwrap();
        return Some(format!(
            "HTTP/1.1 {status} x\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        ));
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
        _ => Some(plain(200, &format!("{}\n\n{}", head.trim_end(), String::from_utf8_lossy(body)))),
    }
}

fn plain(status: u16, text: &str) -> String {
    let length = text.len();
    format!(
        "HTTP/1.1 {status} x\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}"
    )
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
    fn hold(&self, reader: &mut impl Read) -> Option<String> {
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
