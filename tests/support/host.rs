//! A running `neoc host`, ended with the test. All that it has refused by then is looked at, see [`refusals`].

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use neoc::policy::Machine;
use rustix::process::{Pid, Signal, kill_process};

use super::{
    client::{self, Answer},
    machine, neoc, pastes, refusals,
};

/// A host that serves a policy.
pub struct Host {
    pub address: SocketAddr,
    child: Child,
    policy: PathBuf,
    /// Where tests have it written.
    audit: PathBuf,
    log: Arc<Mutex<String>>,
    log_reader: Option<JoinHandle<()>>,
    // Held open: a closed pipe would change what the host sees.
    _stdout: BufReader<ChildStdout>,
}

impl Host {
    /// Starts a host on `folder/policy.toml`, which must listen on port 0, and waits until it listens.
    pub fn start(folder: &Path) -> Self {
        Self::start_file(&folder.join("policy.toml"))
    }

    /// As [`Host::start`], with any name of the policy.
    pub fn start_file(policy: &Path) -> Self {
        pastes::note(policy);
        let mut command = neoc();
        command
            .arg("host")
            .arg("--policy")
            .arg(policy)
            .env("NEOC_LOG", "info,neoc::audit=debug,neoc::request=debug,neoc::memory=debug");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (sink, stderr) = (Arc::clone(&log), child.stderr.take().unwrap());
        let log_reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = sink.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let audit = policy.with_file_name("audit.jsonl");
        let Some(address) = line.trim().strip_prefix("listening on http://") else {
            let _ = child.wait();
            log_reader.join().unwrap();
            panic!("the host did not start: {line:?}\n{}", log.lock().unwrap());
        };
        let (address, policy) = (address.parse().unwrap(), policy.to_owned());
        Self { address, child, policy, audit, log, log_reader: Some(log_reader), _stdout: stdout }
    }

    pub fn get(&self, path: &str) -> Answer {
        client::get(self.address, path)
    }

    pub fn post(&self, path: &str, body: &str) -> Answer {
        client::post(self.address, path, body)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the host and to nobody else.
    pub fn signal(&self, signal: Signal) {
        // It may be told that its policy is another one now.
        pastes::note(&self.policy);
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// What it knows of its machine.
    fn machine(&self) -> Machine {
        machine(Some(self.address))
    }

    /// Waits for the host to end of its own; gives its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// All that it logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// How many of its lines hold `text`, so far.
    pub fn count(&self, text: &str) -> usize {
        self.log.lock().unwrap().lines().filter(|line| line.contains(text)).count()
    }

    /// Ends the host with SIGTERM and gives all that it logged.
    pub fn stop(mut self) -> String {
        self.signal(Signal::TERM);
        assert_eq!(self.wait(), Some(0), "the host did not drain");
        self.log_reader.take().unwrap().join().unwrap();
        let log = std::mem::take(&mut *self.log.lock().unwrap());
        refusals::check_log(&log, &self.machine());
        log
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Already ended when the test stopped it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self._stdout.read_to_end(&mut Vec::new());
        if thread::panicking() {
            eprintln!("the host's log:\n{}", self.log.lock().unwrap());
            return;
        }
        pastes::note(&self.policy);
        if let Some(log_reader) = self.log_reader.take() {
            log_reader.join().unwrap();
            refusals::check_log(&self.log(), &self.machine());
        }
        refusals::check_file(&self.audit, &self.machine());
    }
}
