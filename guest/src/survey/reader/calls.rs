//! What is called and required.

use std::collections::btree_map::Entry;
use std::ops::Range;

use neoc_abi::narrowing::Narrowing;
use neoc_abi::survey::Target;

use super::{FOUND_BYTES, Layer, MAX_BYTES, Meaning, Reader, Text, What};
use crate::stdlib::hyper::to_method;
use crate::survey::lexer::{self, Kind};

/// The module whose calls have a URL and a method.
const HYPER: &str = "vnd:hyper";

/// Functions that call their first argument with the others.
const PASS_ON: [&[u8]; 4] = [b"pcall", b"spawn", b"defer", b"detach"];

impl Reader<'_> {
    /// A name that is part of an expression.
    pub(super) fn find_call(&mut self, at: usize) {
        let Some(meaning) = self.name(at).and_then(|name| self.meanings.get(name)) else { return };
        let is_passed_on = self.passed_to(at).is_some_and(|by| by == b"pcall") && self.sign(at + 1) == b",";
        if matches!(meaning, Meaning::Require) {
            if let Some((place, name, next)) = self.required(at + 1) {
                self.add_require(place, name, self.narrowing(place), false);
                self.use_patterns(place..next);
            } else if is_passed_on && let Some((name, next)) = self.literal(at + 2) {
                self.add_require(at + 2, name, None, true);
                self.use_patterns(next..self.behind_arguments(next).unwrap_or(next));
            }
        }
        if let Some((Meaning::Function(module, function), next)) = self.callee(at) {
            let is_passed_on = self.passed_to(at).is_some_and(|by| PASS_ON.contains(&by)) && self.sign(next) == b",";
            let argument = match self.kind(next) {
                Some(Kind::Sign) if self.sign(next) == b"(" || is_passed_on => next + 1,
                Some(Kind::Sign) if self.sign(next) == b"{" => next,
                Some(Kind::Text | Kind::Begin) => next,
                _ => return,
            };
            self.add_call(at..next, module, function, argument);
        }
    }

    /// What a table is narrowed to: its URLs are patterns, and nothing is called there.
    fn use_patterns(&mut self, arguments: Range<usize>) {
        for at in arguments {
            match (self.tokens.get(at), self.name(at).and_then(|name| self.meanings.get(name))) {
                (_, Some(Meaning::Text(text))) => self.used.extend(&text.tokens),
                (Some(token), _) if token.kind == Kind::Text => drop(self.used.insert(token.start)),
                _ => {}
            }
        }
    }

    /// The function whose first argument begins there.
    fn passed_to(&self, at: usize) -> Option<&[u8]> {
        self.name(at.checked_sub(2)?).filter(|_| self.sign_before(at) == b"(")
    }

    fn add_require(&mut self, place: usize, name: String, narrowing: Option<Narrowing>, is_caught: bool) {
        let Some(token) = self.tokens.get(place).copied() else { return };
        let n_bytes = name.len() + narrowing.as_ref().map_or(0, Narrowing::n_bytes);
        self.record(token.start, Layer::Require, token.end, What::Require { name, narrowing, is_caught }, n_bytes);
    }

    /// Keeps something that was found, while there is room.
    fn record(&mut self, start: usize, layer: Layer, end: usize, what: What, n_bytes: usize) {
        if let Entry::Vacant(vacant) = self.found.entry((start, layer)) {
            self.n_found_bytes = self.n_found_bytes.saturating_add(n_bytes + FOUND_BYTES);
            if self.n_found_bytes <= MAX_BYTES {
                vacant.insert((end, what));
            }
        }
    }

    fn add_call(&mut self, callee: Range<usize>, module: String, function: String, argument: usize) {
        if module == HYPER {
            match function.as_str() {
                "get" => self.add_url(argument, &function, Some("GET")),
                "post" => self.add_url(argument, &function, Some("POST")),
                "request" => drop(self.add_request(argument, &function)),
                "get_all" => self.add_requests(argument, &function),
                _ => {}
            }
            return;
        }
        // What starts a worker has the name of a module.
        let known = self.argument(argument).filter(|(text, _)| text.target.is_whole);
        if let Some((text, _)) = known.as_ref().filter(|_| module == "std:workers") {
            self.add_require(argument, text.target.text.clone(), None, false);
        }
        match known {
            Some((text, next)) => self.add(argument..next, Some(text), module, function, None),
            // What a policy says of a call hangs on its target, but for this one.
            None if (module.as_str(), function.as_str()) == ("std:task", "detach") => {
                self.add(callee, None, module, function, None);
            }
            None => {}
        }
    }

    /// An argument that is a text, whole or the first part of one, and the place behind what is known of it.
    fn argument(&self, at: usize) -> Option<(Text, usize)> {
        match self.value(at)? {
            (Meaning::Text(text), next) => Some((text, next)),
            _ => None,
        }
    }

    fn add_url(&mut self, at: usize, function: &str, method: Option<&str>) {
        if let Some((text, next)) = self.argument(at) {
            self.add(at..next, Some(text), HYPER.to_owned(), function.to_owned(), method.map(str::to_owned));
        }
    }

    fn add(&mut self, at: Range<usize>, text: Option<Text>, module: String, function: String, method: Option<String>) {
        let Some(tokens @ [first, ..]) = self.tokens.get(at) else { return };
        let (start, end) = (first.start, tokens.last().map_or(first.end, |last| last.end));
        let target = text.map(|text| {
            self.used.extend(text.tokens);
            text.target
        });
        let n_bytes = target.as_ref().map_or(0, |target| target.text.len()) + method.as_ref().map_or(0, String::len);
        let what = What::Call { module, function, target, method };
        self.record(start, Layer::Call, end, what, n_bytes);
    }

    /// `{ url = …, method = … }`; gives the place of its end, if that is near.
    fn add_request(&mut self, at: usize, function: &str) -> Option<usize> {
        if self.sign(at) != b"{" {
            return None;
        }
        let (mut depth, mut url, mut method, mut end) = (0_usize, None, Some("GET".to_owned()), None);
        for at in self.ahead(at) {
            match self.sign(at) {
                b"{" | b"(" | b"[" => depth += 1,
                b"}" | b")" | b"]" => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 {
                end = Some(at);
                break;
            }
            let is_field =
                depth == 1 && matches!(self.sign_before(at), b"{" | b"," | b";") && self.sign(at + 1) == b"=";
            match self.name(at).filter(|_| is_field) {
                Some(b"url") => url = Some(at + 2),
                Some(b"method") => {
                    let text = self.argument(at + 2).filter(|(text, _)| text.target.is_whole);
                    // In quotes it is none for the policy either.
                    method = text.map(|(text, _)| {
                        to_method(&text.target.text).unwrap_or_else(|| format!("{:?}", text.target.text))
                    });
                }
                _ => {}
            }
        }
        // Behind what was looked at there may be another method.
        let method = method.filter(|_| end.is_some());
        if let Some(url) = url {
            self.add_url(url, function, method.as_deref());
        }
        end
    }

    /// `{ "https://…", { url = … } }`.
    fn add_requests(&mut self, at: usize, function: &str) {
        if self.sign(at) != b"{" {
            return;
        }
        let mut skipped_to = at + 1;
        for at in self.ahead(at + 1) {
            if at < skipped_to {
                continue;
            }
            match (self.sign(at), self.sign_before(at)) {
                (b"}" | b"(", _) => return,
                (b"{", _) => match self.add_request(at, function) {
                    Some(end) => skipped_to = end + 1,
                    None => return,
                },
                (_, b"{" | b"," | b";") => self.add_url(at, function, Some("GET")),
                _ => {}
            }
        }
    }

    /// URLs that are in no call that was understood.
    pub(super) fn add_urls(&mut self) {
        for index in 0..self.tokens.len() {
            let Some(token) = self.tokens.get(index).copied() else { return };
            if !matches!(token.kind, Kind::Text | Kind::Begin) || self.used.contains(&token.start) {
                continue;
            }
            let Some(text) = lexer::value(self.source, token).filter(|text| is_url(text)) else { continue };
            let is_whole = token.kind == Kind::Text;
            let n_bytes = text.len();
            self.record(token.start, Layer::Url, token.end, What::Url(Target { text, is_whole }), n_bytes);
        }
    }
}

/// Whether a text is nothing but a URL with a host, which is no pattern.
fn is_url(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else { return false };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    host.contains(|character: char| character.is_alphanumeric())
        && !host.contains(['%', '{', '$', '<', '*'])
        && !text.contains(char::is_whitespace)
}
