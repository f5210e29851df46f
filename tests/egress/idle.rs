//! Connections that are kept for later: one tenant holds no more of them than its
//! share, and no other one feels it: NET-30. Within its share they may all be to one server.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::support::{
    dns::{Answer, NameServer},
    host::Host,
    wait_until,
};

/// Most idle connections of a tenant: as many as it may have at once.
const MAX_IDLE: usize = 32;

/// Origins that one tenant calls.
const ORIGINS: usize = 1000;

/// Requests that a script has under way at once with one server.
const AT_ONCE: usize = 8;

/// An upstream that keeps each connection open for as long as its client does.
struct Patient {
    address: SocketAddr,
    opened: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
}

impl Patient {
    /// `at_once`: it answers none of so many requests before it has them all.
    fn start(at_once: usize) -> Self {
        let barrier = Arc::new(Barrier::new(at_once));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (opened, closed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counts = (Arc::clone(&opened), Arc::clone(&closed));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                counts.0.fetch_add(1, Ordering::SeqCst);
                let (closed, barrier) = (Arc::clone(&counts.1), Arc::clone(&barrier));
                thread::spawn(move || {
                    // A client that goes away is what is waited for.
                    drop(serve(stream, &barrier));
                    closed.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, opened, closed }
    }

    fn n_open(&self) -> usize {
        let closed = self.closed.load(Ordering::SeqCst);
        self.opened.load(Ordering::SeqCst) - closed
    }
}

fn serve(mut stream: TcpStream, barrier: &Barrier) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while let Some(line) = lines.next().transpose()? {
        if line.is_empty() {
            barrier.wait();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
        }
    }
    Ok(())
}

#[test]
fn a_thousand_origins_leave_a_tenant_its_share_of_idle_connections_and_others_theirs() {
    let upstream = Patient::start(1);
    let names: Vec<&'static str> = (0..ORIGINS).map(|n| &*format!("n{n}.idle.test").leak()).collect();
    let answer = || Answer::Addresses(vec!["127.0.0.1".parse().unwrap()], 60);
    let dns = NameServer::start(names.iter().copied().chain(["other.test"]).map(|name| (name, answer())));
    let port = upstream.address.port();
    let folder = tempfile::tempdir().unwrap();
    let fill = format!(
        "local hyper = require('vnd:hyper')
        return function()
            local urls, n_ok = {{}}, 0
            for n = 0, {} do table.insert(urls, `http://n{{n}}.idle.test:{port}/`) end
            for _, response in hyper.get_all(urls) do
                if response.status == 200 then n_ok += 1 end
            end
            return tostring(n_ok)
        end",
        ORIGINS - 1
    );
    let other = format!("return function() return require('vnd:hyper').get('http://other.test:{port}/').body end");
    fs::write(folder.path().join("fill.luau"), fill).unwrap();
    fs::write(folder.path().join("other.luau"), other).unwrap();
    let grant = |tenant: &str, host: &str| {
        format!("[[tenant.{tenant}.allow.http]]\nhosts = [\"http://{host}:{port}\"]\naddresses = [\"127.0.0.0/8\"]\n")
    };
    let policy = format!(
        "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\ndns = [\"{}\"]\n\
         [tenant.fill]\nscript = \"fill.luau\"\nroutes = [\"/fill\"]\n\
         [tenant.fill.limits]\nsubrequests = 10000\noperations = \"100000/s\"\ncpu = \"10 s\"\nwall = \"60 s\"\n\
         [tenant.other]\nscript = \"other.luau\"\nroutes = [\"/other\"]\n{}{}",
        dns.address,
        grant("fill", "*.idle.test"),
        grant("other", "other.test"),
    );
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    let host = Host::start(folder.path());
    assert_eq!(host.get("/other").body, "ok");
    assert_eq!(host.get("/fill").body, ORIGINS.to_string());
    assert!(upstream.opened.load(Ordering::SeqCst) > ORIGINS, "each origin has a connection of its own");
    // Those over its share are closed, and what the other tenant keeps is still there for it.
    wait_until("the closing", || upstream.n_open() <= MAX_IDLE + 1);
    let opened = upstream.opened.load(Ordering::SeqCst);
    assert_eq!(host.get("/other").body, "ok");
    assert_eq!(upstream.opened.load(Ordering::SeqCst), opened, "the other tenant's connection was used again");
}

#[test]
fn connections_that_were_under_way_at_once_to_one_server_are_all_used_again() {
    let upstream = Patient::start(AT_ONCE);
    let folder = tempfile::tempdir().unwrap();
    let url = format!("http://127.0.0.1:{}/", upstream.address.port());
    let script = format!(
        "local hyper = require('vnd:hyper')
        return function()
            local urls, n_ok = table.create({AT_ONCE}, '{url}'), 0
            for _, response in hyper.get_all(urls) do
                if response.status == 200 then n_ok += 1 end
            end
            return tostring(n_ok)
        end"
    );
    fs::write(folder.path().join("main.luau"), script).unwrap();
    let policy = format!(
        "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\n\
         [tenant.a]\nscript = \"main.luau\"\nroutes = [\"/*\"]\n\
         [[tenant.a.allow.http]]\nhosts = [\"{}\"]\naddresses = [\"127.0.0.0/8\"]\n",
        url.trim_end_matches('/'),
    );
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    let host = Host::start(folder.path());
    for _ in 0..3 {
        assert_eq!(host.get("/").body, AT_ONCE.to_string());
    }
    assert_eq!(upstream.opened.load(Ordering::SeqCst), AT_ONCE);
}
