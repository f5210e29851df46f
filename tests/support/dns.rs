//! A name server on loopback, by UDP and TCP, whose names say what it answers.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex},
    thread,
};

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};

/// What the server does when it is asked for a name.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Gives these addresses, with a time to live in seconds.
    Addresses(Vec<IpAddr>, u32),
    /// Gives the first answer the first time it is asked for a type, and the second one from then on.
    Then(Box<Answer>, Box<Answer>),
    /// Gives an alias, with what the server itself knows of it.
    Alias(&'static str),
    /// Fails.
    Failure(ResponseCode),
    /// Never answers.
    Silence,
    /// Answers with bytes that are no message.
    Garbage,
}

/// A running name server. Its threads end with the test process.
pub struct NameServer {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    names: HashMap<&'static str, Answer>,
    /// What was asked for, in order.
    queries: Mutex<Vec<(String, RecordType)>>,
}

impl NameServer {
    /// Starts a server that knows these names, in lower case and without a final dot. Others do not exist.
    pub fn start(names: impl IntoIterator<Item = (&'static str, Answer)>) -> Self {
        let (udp, tcp) = sockets();
        let address = udp.local_addr().unwrap();
        let state = Arc::new(State { names: names.into_iter().collect(), queries: Mutex::default() });
        let shared = Arc::clone(&state);
        thread::spawn(move || serve_udp(&udp, &shared));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in tcp.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve_tcp(stream, &shared));
            }
        });
        Self { address, state }
    }

    /// How often addresses of a name, in IPv4, were asked for.
    pub fn n_queries(&self, name: &str) -> usize {
        let queries = self.state.queries.lock().unwrap();
        queries.iter().filter(|(asked, kind)| asked == name && *kind == RecordType::A).count()
    }

    /// All names that were asked for, each once, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.state.queries.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// A socket and a listener on the same port.
fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
            return (udp, tcp);
        }
    }
}

fn serve_udp(socket: &UdpSocket, state: &State) {
    let mut buffer = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let Some(mut answer) = state.answer(&buffer[..length]) else { continue };
        if answer.len() > 512 {
            // The client is to come back by TCP.
            answer = truncated(&answer);
        }
        let _ = socket.send_to(&answer, from);
    }
}

fn serve_tcp(mut stream: TcpStream, state: &State) {
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut query = vec![0; u16::from_be_bytes(length).into()];
        if stream.read_exact(&mut query).is_err() {
            return;
        }
        let Some(answer) = state.answer(&query) else { continue };
        let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
        if stream.write_all(&[&length[..], &answer].concat()).is_err() {
            return;
        }
    }
}

fn truncated(answer: &[u8]) -> Vec<u8> {
    let Ok(message) = Message::from_vec(answer) else { return answer[..512].to_vec() };
    message.truncate().to_vec().unwrap()
}

impl State {
    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        let question = query.queries.first()?.clone();
        let (name, kind) = (question.name().to_ascii(), question.query_type());
        let name = name.to_lowercase().trim_end_matches('.').to_owned();
        let n_asked = {
            let mut queries = self.queries.lock().unwrap();
            queries.push((name.clone(), kind));
            queries.iter().filter(|asked| **asked == (name.clone(), kind)).count()
        };
        let mut message = query.into_response();
        message.metadata.recursion_available = true;
        message.edns = None;
        let mut answer = self.names.get(name.as_str()).cloned().unwrap_or(Answer::Failure(ResponseCode::NXDomain));
        if let Answer::Then(first, later) = answer {
            answer = if n_asked == 1 { *first } else { *later };
        }
        let mut owner = question.name().clone();
        for _ in 0..20 {
            match answer {
                Answer::Alias(target) => {
                    let alias = Name::from_ascii(format!("{target}.")).unwrap();
                    message.add_answer(Record::from_rdata(owner, 60, RData::CNAME(rdata::CNAME(alias.clone()))));
                    owner = alias;
                    answer = self.names.get(target).cloned().unwrap_or(Answer::Failure(ResponseCode::NXDomain));
                }
                Answer::Addresses(addresses, ttl) => {
                    let records = addresses.iter().filter_map(|address| match (address, kind) {
                        (IpAddr::V4(address), RecordType::A) => Some(RData::A((*address).into())),
                        (IpAddr::V6(address), RecordType::AAAA) => Some(RData::AAAA((*address).into())),
                        _ => None,
                    });
                    for record in records {
                        message.add_answer(Record::from_rdata(owner.clone(), ttl, record));
                    }
                    break;
                }
                Answer::Failure(code) => {
                    message.metadata.response_code = code;
                    break;
                }
                Answer::Silence => return None,
                Answer::Garbage => return Some(b"no message".to_vec()),
                Answer::Then(first, _) => answer = *first,
            }
        }
        Some(message.to_vec().unwrap())
    }
}
