//! What one text spells out, found in its tokens. Pure.
//!
//! Not a parser: it goes through the tokens once, keeps in mind what names were last given to, and knows a few
//! sequences of tokens. It knows no scopes. Where it is not sure what a name means, the name means nothing; so
//! it sees too little rather than too much.
//!
//! | it understands | such as |
//! |---|---|
//! | modules, functions and texts that have a name | `local hyper, base = require("vnd:hyper"), "https://a.example"` |
//! | a call, and one by way of another function | `hyper.get(url)`, `pcall(hyper.get, url)`, `hyper.get "…"` |
//! | texts put together | `` base .. "/x/" .. id``, `` `{base}/x/{id}` `` |
//! | requests as tables | `hyper.request({ url = base, method = "PUT" })` |

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use neoc_abi::survey::{MAX_LITERAL_BYTES, Target};

use super::lexer::{self, Kind, Token};
use crate::stdlib::hyper::to_method;

/// Most texts that are put together, and most names that are declared at once.
const MAX_OPERANDS: usize = 64;

/// Most tokens of a table, a list of parameters or a type that are looked at.
const MAX_AHEAD: usize = 500;

/// The module whose calls have a URL and a method.
const HYPER: &str = "vnd:hyper";

/// What is found, in the order of the text.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// In bytes of the text.
    pub span: Range<usize>,
    /// What.
    pub what: What,
}

/// What is found.
#[derive(Debug, PartialEq, Eq)]
pub enum What {
    /// A module is required, ours or the tenant's own.
    Require {
        /// As written.
        name: String,
        /// Whether the script catches it when the module is not there.
        is_caught: bool,
    },
    /// A function of one of our modules is called.
    Call {
        /// The module as it was required.
        module: String,
        /// The function.
        function: String,
        /// The first argument, or the URL in it.
        target: Option<Target>,
        /// Of HTTP, as it is sent.
        method: Option<String>,
    },
    /// A URL in no call that was understood.
    Url(Target),
}

/// What a name means.
#[derive(Debug, Clone)]
enum Meaning {
    /// `require` itself.
    Require,
    /// What it gave.
    Module(String),
    /// A function of a module.
    Function(String, String),
    Text(Text),
}

/// A text that is known, and the tokens that it is made of.
#[derive(Debug, Clone, Default)]
struct Text {
    target: Target,
    /// By where they start.
    tokens: Vec<usize>,
}

/// Finds what a text spells out.
pub fn read(source: &[u8]) -> Vec<Found> {
    let tokens = lexer::tokens(source);
    let meanings = BTreeMap::from([(&b"require"[..], Meaning::Require)]);
    let mut reader = Reader { source, tokens, meanings, found: BTreeMap::new(), used: BTreeSet::new() };
    for at in 0..reader.tokens.len() {
        reader.step(at);
    }
    reader.add_urls();
    reader.found.into_iter().map(|((start, _), (end, what))| Found { span: start..end, what }).collect()
}

/// Which of two things that begin at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Require,
    Call,
    Url,
}

struct Reader<'s> {
    source: &'s [u8],
    tokens: Vec<Token>,
    meanings: BTreeMap<&'s [u8], Meaning>,
    /// By where it starts: to come by a place twice does no harm.
    found: BTreeMap<(usize, Layer), (usize, What)>,
    /// Texts that are in a call, by where they start.
    used: BTreeSet<usize>,
}

impl<'s> Reader<'s> {
    // === Tokens ===

    fn kind(&self, at: usize) -> Option<Kind> {
        self.tokens.get(at).map(|token| token.kind)
    }

    fn written(&self, at: usize, kind: Kind) -> Option<&'s [u8]> {
        let token = self.tokens.get(at).filter(|token| token.kind == kind)?;
        self.source.get(token.start..token.end)
    }

    fn name(&self, at: usize) -> Option<&'s [u8]> {
        self.written(at, Kind::Name)
    }

    /// The sign there. Empty: it is none.
    fn sign(&self, at: usize) -> &'s [u8] {
        self.written(at, Kind::Sign).unwrap_or_default()
    }

    fn sign_before(&self, at: usize) -> &'s [u8] {
        at.checked_sub(1).map(|before| self.sign(before)).unwrap_or_default()
    }

    /// The places of these tokens that are next to be looked at.
    fn ahead(&self, at: usize) -> Range<usize> {
        at..self.tokens.len().min(at + MAX_AHEAD)
    }

    // === One step ===

    fn step(&mut self, at: usize) {
        let Some(name) = self.name(at) else { return };
        match name {
            b"local" => self.declare(at + 1),
            b"function" => self.forget_parameters(at + 1),
            b"for" => self.forget_until_in(at + 1),
            // Behind a dot or a colon it is a field of something else.
            _ if matches!(self.sign_before(at), b"." | b":") => {}
            _ if self.is_assigned(at) => {
                let meaning = self.value(at + 2).filter(|_| self.sign(at + 1) == b"=").map(|(meaning, _)| meaning);
                self.learn(name, meaning);
            }
            _ => self.find_call(at),
        }
    }

    fn learn(&mut self, name: &'s [u8], meaning: Option<Meaning>) {
        match meaning {
            Some(meaning) => drop(self.meanings.insert(name, meaning)),
            None => drop(self.meanings.remove(name)),
        }
    }

    /// `x = …` and `x ..= …` as statements: in a table it is a field.
    fn is_assigned(&self, at: usize) -> bool {
        let is_field = matches!(self.sign_before(at), b"{" | b"," | b";");
        !is_field && matches!(self.sign(at + 1), b"=" | b"..=")
    }

    /// `local a: string, b = "x", require("y")`, behind its first word.
    fn declare(&mut self, mut at: usize) {
        let mut names = Vec::new();
        while let Some(name) = self.name(at).filter(|name| *name != b"function" && names.len() < MAX_OPERANDS) {
            names.push(name);
            at = self.behind_type(at + 1);
            if self.sign(at) != b"," {
                break;
            }
            at += 1;
        }
        let mut is_known = self.sign(at) == b"=";
        for name in names {
            let value = self.value(at + 1).filter(|_| is_known);
            is_known = value.as_ref().is_some_and(|(_, next)| self.sign(*next) == b",");
            at = value.as_ref().map_or(at, |(_, next)| *next);
            self.learn(name, value.map(|(meaning, _)| meaning));
        }
    }

    /// The place behind `: type`, if there is one.
    fn behind_type(&self, at: usize) -> usize {
        if self.sign(at) != b":" {
            return at;
        }
        let (mut depth, mut was_name) = (0_usize, false);
        for at in self.ahead(at + 1) {
            let is_name = self.name(at).is_some();
            match self.sign(at) {
                b"(" | b"{" | b"<" | b"[" => depth += 1,
                b")" | b"}" | b">" | b"]" => depth = depth.saturating_sub(1),
                b"=" | b"," if depth == 0 => return at,
                // The type has ended, and so has the statement.
                _ if is_name && was_name && depth == 0 => return at,
                _ => {}
            }
            was_name = is_name;
        }
        at
    }

    /// `name.name:name<T>(a: type, b)`, behind `function`: the parameters hide what their names meant.
    fn forget_parameters(&mut self, at: usize) {
        if let Some(name) = self.name(at).filter(|_| self.sign(at + 1) == b"(") {
            self.meanings.remove(name);
        }
        let mut depth = 0_usize;
        for at in self.ahead(at) {
            match (self.sign(at), self.name(at)) {
                (b"(", _) => depth += 1,
                (b")", _) if depth <= 1 => return,
                (b")", _) => depth -= 1,
                (_, Some(name)) if matches!(self.sign_before(at), b"(" | b",") => drop(self.meanings.remove(name)),
                _ => {}
            }
        }
    }

    /// `for a, b in …` and `for i = …`, behind `for`.
    fn forget_until_in(&mut self, at: usize) {
        for at in self.ahead(at) {
            match self.name(at) {
                Some(b"in") => return,
                Some(name) => drop(self.meanings.remove(name)),
                None if self.sign(at) == b"=" => return,
                None => {}
            }
        }
    }

    // === Values ===

    /// What a whole expression means, and the place behind it.
    fn value(&self, at: usize) -> Option<(Meaning, usize)> {
        let (meaning, next) = match self.text(at) {
            Some((text, next)) => (Meaning::Text(text), next),
            None => self.callee(at)?,
        };
        // What goes on is something else.
        let goes_on = match self.kind(next) {
            Some(Kind::Sign) => !matches!(self.sign(next), b"," | b")" | b"}" | b"]" | b";" | b"::"),
            Some(Kind::Name) => matches!(self.name(next), Some(b"and" | b"or")),
            Some(Kind::Text | Kind::Begin) => true,
            Some(Kind::Middle | Kind::End | Kind::Number | Kind::Other) | None => false,
        };
        let is_part = matches!(&meaning, Meaning::Text(text) if !text.target.is_whole);
        (is_part || !goes_on).then_some((meaning, next))
    }

    /// A name that means something, with what is taken out of it: `hyper`, `hyper.get`, `require("vnd:hyper").get`.
    fn callee(&self, at: usize) -> Option<(Meaning, usize)> {
        let (mut meaning, mut next) = (self.meanings.get(self.name(at)?)?.clone(), at + 1);
        loop {
            (meaning, next) = match meaning {
                Meaning::Require => match self.required(next) {
                    Some((_, name, next)) => (Meaning::Module(name), next),
                    None => return Some((Meaning::Require, next)),
                },
                Meaning::Module(module) => match self.name(next + 1).filter(|_| self.sign(next) == b".") {
                    Some(function) => {
                        let function = String::from_utf8_lossy(function).into_owned();
                        return Some((Meaning::Function(module, function), next + 2));
                    }
                    None => return Some((Meaning::Module(module), next)),
                },
                Meaning::Function(..) | Meaning::Text(_) => return Some((meaning, next)),
            };
        }
    }

    /// `("x")` or `"x"` behind `require`: the text's place, the text, and the place behind all.
    fn required(&self, at: usize) -> Option<(usize, String, usize)> {
        let place = if self.sign(at) == b"(" { at + 1 } else { at };
        let whole = |(text, next): (Text, usize)| text.target.is_whole.then_some((text.target.text, next));
        if place == at {
            let (text, next) = self.literal(at)?;
            return Some((at, text, next));
        }
        let (text, next) = self.text(place).and_then(whole)?;
        match self.sign(next) {
            b")" => Some((place, text, next + 1)),
            _ => None,
        }
    }

    /// One string that is all there.
    fn literal(&self, at: usize) -> Option<(String, usize)> {
        let token = self.tokens.get(at).filter(|token| token.kind == Kind::Text)?;
        Some((lexer::value(self.source, *token)?, at + 1))
    }

    /// Texts and names of texts with `..` between, as far as they are known. Behind it something else may follow.
    fn text(&self, mut at: usize) -> Option<(Text, usize)> {
        let mut text = Text::default();
        at = self.operand(at, &mut text)?;
        for _ in 1..MAX_OPERANDS {
            if !text.target.is_whole || self.sign(at) != b".." {
                return Some((text, at));
            }
            match self.operand(at + 1, &mut text) {
                Some(next) => at = next,
                None => text.target.is_whole = false,
            }
        }
        text.target.is_whole = false;
        Some((text, at))
    }

    /// Adds one operand to a text; gives the place behind it. None: it is not known at all.
    fn operand(&self, at: usize, text: &mut Text) -> Option<usize> {
        let token = *self.tokens.get(at)?;
        match token.kind {
            Kind::Text => self.append(token, text).then_some(at + 1),
            Kind::Begin => {
                self.append(token, text).then_some(())?;
                Some(self.interpolated(at + 1, text))
            }
            Kind::Name => {
                let Meaning::Text(named) = self.meanings.get(self.name(at)?)? else { return None };
                // What is called, indexed or asked is something else.
                let is_used = matches!(self.sign(at + 1), b"." | b"[" | b"(" | b":" | b"{");
                (!is_used && text.join(&named.target.text)).then_some(())?;
                text.tokens.extend(named.tokens.iter().take(MAX_OPERANDS));
                text.target.is_whole = named.target.is_whole;
                Some(at + 1)
            }
            _ => None,
        }
    }

    /// The rest of a backtick string, from its first expression on.
    fn interpolated(&self, mut at: usize, text: &mut Text) -> usize {
        for _ in 0..MAX_OPERANDS {
            let before = text.clone();
            let piece = self.tokens.get(at + 1).filter(|piece| matches!(piece.kind, Kind::Middle | Kind::End));
            let is_known = self.kind(at) == Some(Kind::Name) && self.operand(at, text).is_some();
            let Some(piece) = piece.filter(|piece| is_known && text.target.is_whole && self.append(**piece, text))
            else {
                *text = before;
                break;
            };
            at += 2;
            if piece.kind == Kind::End {
                return at;
            }
        }
        text.target.is_whole = false;
        at
    }

    /// Adds a string; whether it could be.
    fn append(&self, token: Token, text: &mut Text) -> bool {
        let is_added = lexer::value(self.source, token).is_some_and(|value| text.join(&value));
        if is_added {
            text.tokens.push(token.start);
        }
        is_added
    }

    // === Calls ===

    /// A name that is part of an expression.
    fn find_call(&mut self, at: usize) {
        let Some(meaning) = self.name(at).and_then(|name| self.meanings.get(name)) else { return };
        let is_passed_on = self.sign_before(at) == b"(" && self.sign(at + 1) == b",";
        if matches!(meaning, Meaning::Require) {
            if let Some((place, name, _)) = self.required(at + 1) {
                self.add_require(place, name, false);
            } else if is_passed_on && let Some((name, _)) = self.literal(at + 2) {
                self.add_require(at + 2, name, true);
            }
        }
        if let Some((Meaning::Function(module, function), next)) = self.callee(at) {
            let is_passed_on = self.sign_before(at) == b"(" && self.sign(next) == b",";
            let argument = match self.kind(next) {
                Some(Kind::Sign) if self.sign(next) == b"(" || is_passed_on => next + 1,
                Some(Kind::Sign) if self.sign(next) == b"{" => next,
                Some(Kind::Text | Kind::Begin) => next,
                _ => return,
            };
            self.add_call(at..next, module, function, argument);
        }
    }

    fn add_require(&mut self, place: usize, name: String, is_caught: bool) {
        let Some(token) = self.tokens.get(place).copied() else { return };
        self.found.insert((token.start, Layer::Require), (token.end, What::Require { name, is_caught }));
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
            self.add_require(argument, text.target.text.clone(), false);
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
        let what = What::Call { module, function, target, method };
        self.found.insert((start, Layer::Call), (end, what));
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
                    // A text that is no method is refused in any case.
                    method = text.map(|(text, _)| to_method(&text.target.text).unwrap_or(text.target.text));
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

    // === What is left ===

    /// URLs that are in no call that was understood.
    fn add_urls(&mut self) {
        for index in 0..self.tokens.len() {
            let Some(token) = self.tokens.get(index).copied() else { return };
            if !matches!(token.kind, Kind::Text | Kind::Begin) || self.used.contains(&token.start) {
                continue;
            }
            let Some(text) = lexer::value(self.source, token).filter(|text| is_url(text)) else { continue };
            let is_whole = token.kind == Kind::Text;
            self.found.insert((token.start, Layer::Url), (token.end, What::Url(Target { text, is_whole })));
        }
    }
}

impl Text {
    /// Adds to it; whether it could be.
    fn join(&mut self, more: &str) -> bool {
        let fits = self.target.text.len() + more.len() <= MAX_LITERAL_BYTES;
        if fits {
            self.target.text.push_str(more);
        }
        fits
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
