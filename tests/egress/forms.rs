//! Targets that are no host and no port: what other systems call sockets, and URLs without an authority. Whatever they
//! are, a tenant of a running host gets nowhere with them, not by the `Host` header of its own request either, and
//! nothing but the host itself listens: NET-25, NET-28, NET-32.

use std::{
    fmt::Write as _,
    fs, io,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use neoc_abi::api::MODULES;

use crate::support::{client, host::Host, tripwire::Tripwire, upstream::Upstream};

/// Things to connect to or to listen on that are no host and port. SOCKET is the path of a Unix socket on which somebody
/// listens, PORT is watched.
const NO_HOSTS: &[&str] = &[
    "unix:SOCKET",
    "unix:/SOCKET",
    "unix://SOCKET",
    "unix:///SOCKET",
    "UNIX:SOCKET",
    "unix:@neoc-test",
    "file://SOCKET",
    "file:SOCKET",
    "local:SOCKET",
    "http+unix://SOCKET/x",
    "http+unix://%2ftmp%2fx/x",
    "http://unix:SOCKET",
    "http://unix:SOCKET:/x",
    "http://SOCKET",
    "http://SOCKET:/x",
    "tcp://SOCKET",
    "tcp://unix:SOCKET",
    "tcp://unix",
    "udp://SOCKET",
    "udp://unix:SOCKET",
    "vsock://2:PORT",
    "vsock:2:PORT",
    "http+vsock://2:PORT/x",
    "tcp://vsock:2:PORT",
    "file:///dev/tcp/127.0.0.1/PORT",
    "fd:3",
    "fd://3",
    "pipe:x",
    "npipe:////./pipe/x",
    "\\\\.\\pipe\\x",
    "exec:true",
    "tcp://127.0.0.1:0",
    "tls://127.0.0.1:0",
    "udp://127.0.0.1:0",
    "http://127.0.0.1:0/",
    "tcp://0.0.0.0:0",
    "udp://0.0.0.0:0",
    "tcp://[::]:0",
    "tcp://[::]:PORT",
    "tcp://0.0.0.0:PORT",
    "udp://0.0.0.0:PORT",
    "tcp://*:PORT",
    "udp://*:PORT",
    "udp://255.255.255.255:PORT",
    "tcp-listen://127.0.0.1:PORT",
    "tcp-listen:PORT",
    "listen:PORT",
    "bind://0.0.0.0:PORT",
    "icmp://127.0.0.1",
    "raw://127.0.0.1",
    "ws://127.0.0.1:PORT/",
    "ftp://127.0.0.1:PORT/",
    "gopher://127.0.0.1:PORT/",
    "data:,x",
];

/// The same with a character that no header holds, so that no redirect leads there.
const NO_TEXT: &[&str] = &["unix:\0neoc-test", "\0neoc-test"];

/// URLs and targets without an authority.
const WITHOUT_AUTHORITY: &[&str] = &[
    "http:///x",
    "http:////x",
    "https:///x",
    "http:/x",
    "http:x",
    "http:",
    "http:/",
    "http://",
    "http://?x",
    "http://#x",
    "http://@/x",
    "http://:PORT/x",
    "http://@:PORT/x",
    "//:PORT/x",
    "//",
    "///x",
    "tcp:",
    "tcp://",
    "tcp:///",
    "tcp://:PORT",
    "tls://:PORT",
    "tls:",
    "udp:",
    "udp://",
    "udp://:PORT",
];

/// These have none either. A redirect to one stays where it comes from, and so is no way out.
const RELATIVE: &[&str] = &["SOCKET", "/dev/tcp/127.0.0.1/PORT", "/dev/udp/127.0.0.1/PORT", "/dev/vsock", "/x", "../x"];

/// And these, which as redirects lead to other redirects of the test's upstream.
const BESIDE: &[&str] = &["", "#x", "?x", "x", "./x", "@neoc-test", "PORT", ":PORT", "://127.0.0.1:PORT/"];

/// Tries TARGETS by each entry point; a line for each that ended otherwise than as refused.
const SCRIPT: &str = r#"
local hyper, net = require("vnd:hyper"), require("std:net")
local TIMEOUTS = { connect = 3, first_byte = 3, between_bytes = 3 }
local entries = {
    get = function(target) return hyper.get(target, { timeouts = TIMEOUTS }) end,
    post = function(target) return hyper.post(target, "body", { timeouts = TIMEOUTS }) end,
    request = function(target) return hyper.request({ url = target, timeouts = TIMEOUTS }) end,
    get_all = function(target)
        local reply = hyper.get_all({ target }, { timeouts = TIMEOUTS })[1]
        if reply.kind then error(reply, 0) end
        return reply
    end,
    connect = function(target) return net.connect(target, { timeout = 3 }) end,
    udp = function(target) return net.udp(target, { timeout = 3 }) end,
}
local targets = { TARGETS }
return function(request)
    if request.path == "/control" then
        net.connect("tcp://ADDRESS"):close()
        return tostring(hyper.get("http://ADDRESS/").status)
    end
    local lines = {}
    local n = 0
    for entry, call in entries do
        for _, target in targets do
            n += 1
            local ok, err = pcall(call, target)
            if ok or type(err) ~= "table" or (err.kind ~= "denied" and err.kind ~= "invalid") then
                table.insert(lines, `{entry} {target}: {if ok then "ok" else tostring(err)}`)
            end
        end
    end
    table.insert(lines, `{n} tried`)
    return table.concat(lines, "\n")
end
"#;

/// A string as Luau writes it.
fn literal(text: &str) -> String {
    let mut literal = String::from("\"");
    for byte in text.bytes() {
        write!(literal, "\\x{byte:02x}").unwrap();
    }
    literal.push('"');
    literal
}

fn filled_in(targets: &[&[&str]], socket: &Path, port: u16) -> Vec<String> {
    let (socket, port) = (socket.to_str().unwrap(), port.to_string());
    let targets = targets.iter().flat_map(|targets| targets.iter());
    targets.map(|target| target.replace("SOCKET", socket).replace("PORT", &port)).collect()
}

/// What listens for a process: TCP and Unix sockets, as the system's table lists them.
#[cfg(target_os = "linux")]
fn listening(pid: u32) -> std::collections::BTreeSet<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let own: std::collections::BTreeSet<_> =
        links.filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect();
    // The file, the column of the state and what it is for one that listens, the column of the inode.
    [("tcp", 3, "0A", 9), ("tcp6", 3, "0A", 9), ("unix", 3, "00010000", 6)]
        .into_iter()
        .flat_map(|(file, state, listens, inode)| {
            let text = fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap_or_default();
            let lines: Vec<_> = text.lines().skip(1).map(str::to_owned).collect();
            let own = &own;
            // Its inode is what stays the same; lines are numbered as they are listed.
            lines.into_iter().filter_map(move |line| {
                let columns: Vec<_> = line.split_whitespace().collect();
                let inode = *columns.get(inode)?;
                (columns.get(state) == Some(&listens) && own.contains(inode)).then(|| format!("{file} {inode}"))
            })
        })
        .collect()
}

/// A folder with a tenant that tries the targets; it may reach the upstream by every scheme.
fn folder(targets: &[String], upstream: &Upstream) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let list: Vec<_> = targets.iter().map(|target| literal(target)).collect();
    let address = upstream.address;
    let script = SCRIPT.replace("TARGETS", &list.join(", ")).replace("ADDRESS", &address.to_string());
    fs::write(folder.path().join("script.luau"), script).unwrap();
    let policy = format!(
        "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\ndns = [\"{address}\"]\n\
         [tenant.t]\nscript = \"script.luau\"\nroutes = [\"/*\"]\n\
         [tenant.t.limits]\noperations = \"100000/s\"\ncpu = \"10 s\"\nwall = \"60 s\"\nsubrequests = 10000\n\
         [[tenant.t.allow.http]]\nhosts = [\"http://{address}\"]\naddresses = [\"127.0.0.0/8\"]\n\
         [[tenant.t.allow.net]]\nhosts = [\"tcp://{address}\", \"tls://{address}\", \"udp://{address}\"]\n\
         addresses = [\"127.0.0.0/8\"]\n"
    );
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    folder
}

/// Somebody who listens on a Unix socket, and on an abstract one where there are such.
struct Local {
    _folder: tempfile::TempDir,
    path: PathBuf,
    listeners: Vec<UnixListener>,
}

impl Local {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        #[cfg_attr(not(target_os = "linux"), expect(unused_mut, reason = "there is no abstract one"))]
        let mut listeners = vec![UnixListener::bind(&path).unwrap()];
        #[cfg(target_os = "linux")]
        {
            use std::os::{linux::net::SocketAddrExt, unix::net::SocketAddr};
            let address = SocketAddr::from_abstract_name("neoc-test").unwrap();
            // Another run of the tests may have it.
            listeners.extend(UnixListener::bind_addr(&address));
        }
        listeners.iter().for_each(|listener| listener.set_nonblocking(true).unwrap());
        Self { _folder: folder, path, listeners }
    }

    /// Fails if anybody came.
    fn check(&self) {
        for listener in &self.listeners {
            assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }
}

#[test]
fn what_is_no_host_and_port_is_refused_by_every_entry_and_the_requests_own_host_is_never_taken() {
    let (tripwire, upstream, local) = (Tripwire::everywhere(), Upstream::start(), Local::start());
    let targets = filled_in(&[NO_HOSTS, NO_TEXT, WITHOUT_AUTHORITY, RELATIVE, BESIDE], &local.path, tripwire.port);
    let folder = folder(&targets, &upstream);
    let host = Host::start(folder.path());
    #[cfg(target_os = "linux")]
    let before = listening(host.pid());
    // The client says that it speaks to a host that the tenant may reach.
    let named = upstream.address;
    let request = format!("GET /x HTTP/1.1\r\nhost: {named}\r\nx-forwarded-host: {named}\r\nconnection: close\r\n\r\n");
    let answer = client::send(host.address, &request);
    assert_eq!(answer.body, format!("{} tried", 6 * targets.len()));
    assert_eq!(upstream.requests(), 0);
    // It is the targets that are refused.
    assert_eq!(host.get("/control").body, "200");
    #[cfg(target_os = "linux")]
    {
        assert_eq!(before.len(), 1, "{before:?}");
        assert_eq!(listening(host.pid()), before);
    }
    local.check();
    tripwire.check();
}

#[test]
fn a_redirect_to_what_is_no_host_is_refused_and_a_relative_one_stays_on_its_origin() {
    let (tripwire, upstream, local) = (Tripwire::everywhere(), Upstream::start(), Local::start());
    let address = upstream.address;
    let grants = format!(
        "subrequests = 10000\n[[tenant.t.allow.http]]\nhosts = [\"http://{address}\"]\naddresses = [\"127.0.0.0/8\"]\n"
    );
    let lab = super::Lab::new(&grants, address);
    let by_redirect = |target: &String| super::redirect(address, target);
    let refused = filled_in(&[NO_HOSTS, WITHOUT_AUTHORITY], &local.path, tripwire.port);
    for outcome in lab.run("redirect", &refused.iter().map(by_redirect).collect::<Vec<_>>()) {
        assert!(["denied", "invalid"].contains(&outcome.kind.as_str()), "{outcome:?}");
    }
    assert_eq!(upstream.requests(), refused.len());
    let followed = filled_in(&[RELATIVE], &local.path, tripwire.port);
    for outcome in lab.run("redirect", &followed.iter().map(by_redirect).collect::<Vec<_>>()) {
        assert_eq!(outcome.kind, "ok", "{outcome:?}");
    }
    assert_eq!(upstream.requests(), refused.len() + 2 * followed.len());
    local.check();
    tripwire.check();
}

#[test]
fn no_function_binds_or_listens_or_takes_the_name_of_a_local_socket() {
    let unwanted = [
        "bind",
        "listen",
        "accept",
        "serve",
        "server",
        "unix",
        "abstract",
        "vsock",
        "pipe",
        "raw",
        "fd",
        "dup",
        "exec",
        "spawn_process",
        "system",
        "popen",
        "open",
        "tunnel",
        "proxy",
        "forward",
    ];
    for module in MODULES {
        for (function, _) in module.functions {
            let words: Vec<_> = function.split(['_', ':', '.']).collect();
            let found = unwanted.iter().find(|word| words.contains(word) || function == *word);
            assert_eq!(found, None, "{}: {function}", module.name);
        }
    }
    // There the names are those of a script's calls.
    assert!(MODULES.iter().any(|module| module.name == "std:net" && module.functions.len() >= 10));
}
