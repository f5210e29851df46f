//! What all tenants share: `[host]`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use super::{
    error::{Broken, Errors, child},
    raw::HostToml,
};

const DEFAULT_INSTANCES: u32 = 1_000;
pub(super) const MAX_INSTANCES: u32 = 10_000;
pub(super) const MAX_WORKERS: usize = 1_024;

/// `[host]` as enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Where to serve. Port 0: any free port. Default: port 8080 on the loopback address, so that
    /// nothing is served to a network by accident.
    pub listen: SocketAddr,
    /// Folder below which every tenant's files and keys live. Default: `data`, beside the policy file.
    pub data_dir: PathBuf,
    /// Folder for compiled code. Absent: the caller's choice.
    pub cache_dir: Option<PathBuf>,
    /// Instances alive at once, over all tenants. 1 to 10,000.
    pub instances: u32,
    /// Threads that run scripts. Absent: as many as the machine has cores.
    pub workers: Option<NonZeroUsize>,
    /// How a running script is stopped. Default: safepoints.
    pub preemption: Preemption,
    /// File that gets a line for every decision. Absent: refusals go to the log, and nothing else is recorded.
    pub audit: Option<PathBuf>,
    /// Name servers for what scripts ask for. Empty: those of the system.
    pub dns: Vec<SocketAddr>,
}

/// How a running script is made to give up its thread, and killed. Both stop everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Preemption {
    /// `"safepoint"`: loads from a page that a kill closes. Costs a running script next to nothing.
    #[default]
    Safepoint,
    /// `"epoch"`: a counter compared at every turn of every loop. Scripts that compute take about
    /// half as long again; there for the day that the other one is in doubt.
    Epoch,
}

/// Converts the table; an absent key takes its default.
pub(super) fn enforce(raw: HostToml, folder: &Path, errors: &mut Errors<'_>) -> Host {
    let HostToml { listen, data_dir, cache_dir, instances, workers, preemption, audit, dns } = raw;
    let at = "host";
    let default_listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    Host {
        listen: errors
            .value(&child(at, "listen"), listen.as_ref(), |text| self::listen(text))
            .unwrap_or(default_listen),
        data_dir: errors
            .value(&child(at, "data_dir"), data_dir.as_ref(), |text| below(folder, text, "\"../data\""))
            .unwrap_or_else(|| folder.join("data")),
        cache_dir: errors
            .value(&child(at, "cache_dir"), cache_dir.as_ref(), |text| below(folder, text, "\"../cache\"")),
        instances: errors
            .value(&child(at, "instances"), instances.as_ref(), self::instances)
            .unwrap_or(DEFAULT_INSTANCES),
        workers: errors.value(&child(at, "workers"), workers.as_ref(), self::workers),
        preemption: errors
            .value(&child(at, "preemption"), preemption.as_ref(), |text| self::preemption(text))
            .unwrap_or_default(),
        dns: errors.list(&child(at, "dns"), &dns.unwrap_or_default(), name_server),
        audit: errors.value(&child(at, "audit"), audit.as_ref(), |text| below(folder, text, "\"../audit.jsonl\"")),
    }
}

/// A path of the operator's: as it is when absolute, else starting at the policy file's folder.
pub(super) fn below(folder: &Path, text: &str, example: &str) -> Result<PathBuf, Broken> {
    if text.is_empty() || text.trim() != text {
        return Err(Broken::new("a path, without spaces around it").write(example));
    }
    if text.chars().any(char::is_control) {
        return Err(Broken::new("a path without control characters").write(example));
    }
    // `..` stays as it is: taken out here, it would mean another folder where a link is on the way.
    Ok(folder.join(text))
}

fn name_server(text: &str) -> Result<SocketAddr, Broken> {
    let broken = || Broken::new("a name server's IP address and port").write("\"127.0.0.1:53\"");
    text.parse().ok().filter(|address: &SocketAddr| address.port() != 0).ok_or_else(broken)
}

fn listen(text: &str) -> Result<SocketAddr, Broken> {
    text.parse().map_err(|_| {
        let example = if text.contains("localhost") { "\"127.0.0.1:8080\"" } else { "\"0.0.0.0:8080\"" };
        Broken::new("an IP address and a port").write(example)
    })
}

fn instances(number: &i64) -> Result<u32, Broken> {
    u32::try_from(*number)
        .ok()
        .filter(|number| (1..=MAX_INSTANCES).contains(number))
        .ok_or_else(|| Broken::new("1 to 10000 instances").write("1000"))
}

fn workers(number: &i64) -> Result<NonZeroUsize, Broken> {
    usize::try_from(*number)
        .ok()
        .filter(|number| *number <= MAX_WORKERS)
        .and_then(NonZeroUsize::new)
        .ok_or_else(|| Broken::new("1 to 1024 threads").help("leave it out to use every core"))
}

fn preemption(text: &str) -> Result<Preemption, Broken> {
    match text {
        "safepoint" => Ok(Preemption::Safepoint),
        "epoch" => Ok(Preemption::Epoch),
        _ => Err(Broken::new("\"safepoint\" or \"epoch\"").write("\"safepoint\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_is_an_address_and_a_port() {
        for text in ["127.0.0.1:0", "0.0.0.0:65535", "[::1]:8080"] {
            assert!(listen(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "8080",
            ":8080",
            "127.0.0.1",
            "127.0.0.1:65536",
            "localhost:8080",
            "127.0.0.1:80 ",
            "127.1:80",
            "http://127.0.0.1:80",
        ] {
            assert!(listen(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_relative_path_starts_at_the_policy_files_folder() {
        let folder = Path::new("policies");
        assert_eq!(below(folder, "../data", ""), Ok(PathBuf::from("policies/../data")));
        assert_eq!(below(folder, "/srv/neoc", ""), Ok(PathBuf::from("/srv/neoc")));
        for text in ["", " data", "data ", "da\0ta", "da\nta"] {
            assert!(below(folder, text, "").is_err(), "{text:?}");
        }
    }

    #[test]
    fn counts_have_a_floor_and_a_ceiling() {
        for (number, accepted) in
            [(-1, false), (0, false), (1, true), (10_000, true), (10_001, false), (i64::MAX, false)]
        {
            assert_eq!(instances(&number).is_ok(), accepted, "instances {number}");
        }
        for (number, accepted) in [(-1, false), (0, false), (1, true), (1_024, true), (1_025, false)] {
            assert_eq!(workers(&number).is_ok(), accepted, "workers {number}");
        }
    }
}
