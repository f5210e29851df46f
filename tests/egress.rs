//! Nothing is reached that the policy does not name, by whatever way a script tries.
//!
//! Each table of targets is tried by every entry point that can reach the network. Tripwires listen where nothing
//! may arrive.
//!
//! | module | holds |
//! |---|---|
//! | [`addresses`] | spellings of forbidden addresses, ports, and hosts that look like allowed ones |
//! | [`forms`] | targets that are no host and no port |
//! | [`names`] | what a name server can answer: rebinding, mixed sets, aliases, too much, nothing |
//! | [`namespace`] | the same with private addresses that are really there, where the machine allows it |
//! | [`hostile`] | upstreams that break the rules of HTTP |
//! | [`idle`] | connections that are kept for later, and how many |
//! | [`exchange`] | headers, redirects, timeouts, packed bodies, connections that are used again |
//! | [`own`] | the host's own listener, and the public addresses of the machine |
//! | [`sockets`] | `std:net`: what a connection does when it is read, written, cancelled, closed |

mod addresses;
mod exchange;
mod forms;
mod hostile;
mod idle;
mod names;
mod namespace;
mod own;
mod sockets;

use std::{fs, net::SocketAddr};

use crate::support::{neoc, output};

/// Every entry point that can reach the network. `redirect` is what a redirect leads to.
const ENTRIES: [&str; 8] = ["get", "post", "request", "get_all", "redirect", "tcp", "tls", "udp"];

/// A tenant whose script makes the calls of one entry point; see `egress/script.luau`.
struct Lab {
    folder: tempfile::TempDir,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    target: String,
    /// `ok`, or the error's kind.
    kind: String,
    /// The limit that was hit, or `-`.
    limit: String,
    /// Why it was refused, or `-`.
    reason: String,
    message: String,
}

impl Outcome {
    /// How the calls to these targets ended, from the lines that the script wrote of them.
    fn of_lines(lines: &str, targets: &[String]) -> Vec<Self> {
        let of_line = |(line, target): (&str, &String)| {
            let fields: Vec<_> = line.splitn(4, '\t').map(str::to_owned).collect();
            let [kind, limit, reason, message] = fields.try_into().unwrap();
            Self { target: target.clone(), kind, limit, reason, message }
        };
        let outcomes: Vec<_> = lines.lines().zip(targets).map(of_line).collect();
        assert_eq!(outcomes.len(), targets.len(), "{lines}");
        outcomes
    }
}

impl Lab {
    /// A lab with these grants of tenant `t`. Names are asked for at `dns`.
    fn new(grants: &str, dns: SocketAddr) -> Self {
        Self::with_script(include_str!("egress/script.luau"), grants, dns)
    }

    fn with_script(script: &str, grants: &str, dns: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("script.luau"), script).unwrap();
        let policy = format!(
            "[host]\nlisten = \"127.0.0.1:0\"\ndata_dir = \"data\"\naudit = \"audit.jsonl\"\ndns = [\"{dns}\"]\n\
             [tenant.t]\nscript = \"script.luau\"\nroutes = [\"/*\"]\n\
             [tenant.t.limits]\noperations = \"100000/s\"\ncpu = \"10 s\"\nwall = \"60 s\"\n\
             {grants}"
        );
        fs::write(folder.path().join("policy.toml"), policy).unwrap();
        Self { folder }
    }

    /// Runs the script with these arguments; gives what it printed.
    fn print(&self, arguments: &[&str]) -> String {
        let mut command = neoc();
        command.current_dir(self.folder.path()).args(["run", "script.luau", "--policy", "policy.toml"]);
        // What a proxy would read. Nothing may.
        for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"] {
            command.env(name, "http://127.0.0.1:1");
        }
        command.env("NO_PROXY", "").env("RES_OPTIONS", "ndots:5").env("LOCALDOMAIN", "search.example");
        let got = output(command.args(["--tenant", "t", "--"]).args(arguments));
        assert_eq!(got.exit, 0, "{}\n{}", got.stdout, got.stderr);
        got.stdout
    }

    /// Tries targets by an entry point.
    fn run(&self, entry: &str, targets: &[String]) -> Vec<Outcome> {
        let mut arguments = vec![entry];
        arguments.extend(targets.iter().map(String::as_str));
        Outcome::of_lines(&self.print(&arguments), targets)
    }
}

/// The scheme that an entry point is given targets of.
fn scheme(entry: &str) -> &str {
    if matches!(entry, "tcp" | "tls" | "udp") { entry } else { "http" }
}

/// A URL of a test upstream that redirects to `target`.
fn redirect(upstream: SocketAddr, target: &str) -> String {
    let hex: String = target.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("http://{upstream}/redirect-hex/302?{hex}")
}
