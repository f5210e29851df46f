//! Which rules name the place that a call goes to, in a few look-ups however many rules there are.
//!
//! Rules are found by host, then by scheme and port, then by path; nothing is allocated on the way. A host
//! of `a.b.example.com` is looked up itself, and `b.example.com`, `example.com`, `com` among the wildcards;
//! a path by itself and by each of its beginnings.

use std::collections::HashMap;

use url::{Host, Url};

use super::{PathPattern, Rule};
use crate::policy::{origin::OriginPattern, path::is_plain};

/// What a path fits that servers may read in two ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum OddPath {
    /// No pattern: for rules that allow.
    #[default]
    FitsNone,
    /// Every pattern: for rules that deny.
    FitsAll,
}

/// Rules by place.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    odd_path: OddPath,
    /// By host, as a URL has it.
    exact: HashMap<Box<str>, Vec<Port>>,
    /// By what follows `*.`.
    wildcards: HashMap<Box<str>, Vec<Port>>,
}

/// The rules of one scheme and port of a host.
#[derive(Debug, Clone)]
struct Port {
    scheme: &'static str,
    port: u16,
    paths: Paths,
}

/// Rules by path, as ascending indices.
#[derive(Debug, Clone, Default)]
struct Paths {
    any: Vec<usize>,
    /// All that have paths.
    with_paths: Vec<usize>,
    exact: HashMap<Box<str>, Vec<usize>>,
    prefixes: HashMap<Box<str>, Vec<usize>>,
    /// Longest key of `prefixes`. A URL cannot make a look-up hash more than this for each of its segments.
    longest_prefix: usize,
    /// The first rule that names this place, whatever its paths.
    first: usize,
}

/// What is known of the rules for a place once all of it was looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Found {
    /// The first that names scheme, host and port.
    pub of_origin: Option<usize>,
    /// The first of these whose paths fit too.
    pub of_path: Option<usize>,
}

impl Index {
    pub(super) fn new(rules: &[Rule], odd_path: OddPath) -> Self {
        let mut index = Self { odd_path, ..Self::default() };
        for (number, rule) in rules.iter().enumerate() {
            for origin in &rule.origins {
                index.add(origin, rule, number);
            }
        }
        index
    }

    fn add(&mut self, origin: &OriginPattern, rule: &Rule, number: usize) {
        let (is_wildcard, host) = origin.host();
        let hosts = if is_wildcard { &mut self.wildcards } else { &mut self.exact };
        let ports = hosts.entry(host.into()).or_default();
        let (scheme, port) = (origin.scheme(), origin.port());
        let place = ports.iter().position(|known| known.scheme == scheme && known.port == port).unwrap_or_else(|| {
            ports.push(Port { scheme, port, paths: Paths { first: number, ..Paths::default() } });
            ports.len() - 1
        });
        ports[place].paths.add(rule, number);
    }

    /// Calls `each` for every rule whose origin and paths fit, in no order. A rule may come more than once.
    pub(super) fn find(&self, url: &Url, mut each: impl FnMut(usize)) -> Found {
        let (scheme, port) = (url.scheme(), url.port_or_known_default());
        let (path, is_plain) = (url.path(), is_plain(url.path()));
        let mut found = Found::default();
        let mut look = |ports: Option<&Vec<Port>>| {
            let of_port = ports.into_iter().flatten().find(|known| known.scheme == scheme && Some(known.port) == port);
            let Some(Port { paths, .. }) = of_port else { return };
            found.of_origin = least(found.of_origin, paths.first);
            let mut fits = |number: &usize| {
                found.of_path = least(found.of_path, *number);
                each(*number);
            };
            paths.any.iter().for_each(&mut fits);
            match (is_plain, self.odd_path) {
                (true, _) => paths.find(path, fits),
                (false, OddPath::FitsNone) => {}
                (false, OddPath::FitsAll) => paths.with_paths.iter().for_each(fits),
            }
        };
        match url.host() {
            Some(Host::Domain(name)) => {
                look(self.exact.get(name));
                let mut rest = name;
                while let Some((_, parent)) = rest.split_once('.') {
                    look(self.wildcards.get(parent));
                    rest = parent;
                }
            }
            Some(_) => look(url.host_str().and_then(|host| self.exact.get(host))),
            None => {}
        }
        found
    }
}

impl Paths {
    fn add(&mut self, rule: &Rule, number: usize) {
        let Some(patterns) = &rule.paths else { return push(&mut self.any, number) };
        push(&mut self.with_paths, number);
        for pattern in patterns {
            match pattern {
                PathPattern::Exact(path) => push(self.exact.entry(path.as_str().into()).or_default(), number),
                PathPattern::Below(path) => {
                    self.longest_prefix = self.longest_prefix.max(path.len());
                    push(self.prefixes.entry(path.as_str().into()).or_default(), number);
                }
            }
        }
    }

    /// Calls `each` for every rule with a pattern that a plain path fits.
    fn find(&self, path: &str, mut each: impl FnMut(&usize)) {
        self.exact.get(path).into_iter().flatten().for_each(&mut each);
        let ends = path.bytes().enumerate().filter(|(_, byte)| *byte == b'/').map(|(at, _)| at);
        for end in ends.chain([path.len()]).take_while(|end| *end <= self.longest_prefix) {
            self.prefixes.get(&path[..end]).into_iter().flatten().for_each(&mut each);
        }
    }
}

fn push(numbers: &mut Vec<usize>, number: usize) {
    // A rule may name one place twice.
    if numbers.last() != Some(&number) {
        numbers.push(number);
    }
}

/// The lesser of what was found so far, if anything was, and another.
pub(super) fn least(so_far: Option<usize>, other: usize) -> Option<usize> {
    Some(so_far.map_or(other, |least| least.min(other)))
}
