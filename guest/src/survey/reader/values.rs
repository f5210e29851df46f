//! What an expression means, as far as its tokens tell.

use neoc_abi::narrowing::{Given, MAX_PATTERNS, Narrowing};
use neoc_abi::survey::MAX_LITERAL_BYTES;

use super::{MAX_OPERANDS, Meaning, Reader, Text};
use crate::survey::lexer::{self, Kind, Token};

impl Reader<'_> {
    /// What a whole expression means, and the place behind it.
    pub(super) fn value(&self, at: usize) -> Option<(Meaning, usize)> {
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
    pub(super) fn callee(&self, at: usize) -> Option<(Meaning, usize)> {
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
                Meaning::Function(..) | Meaning::Text(_) | Meaning::Unsure => return Some((meaning, next)),
            };
        }
    }

    /// `("x")`, `("x", { … })` or `"x"` behind `require`: the text's place, the text, and the place behind all.
    pub(super) fn required(&self, at: usize) -> Option<(usize, String, usize)> {
        let place = if self.sign(at) == b"(" { at + 1 } else { at };
        let whole = |(text, next): (Text, usize)| text.target.is_whole.then_some((text.target.text, next));
        if place == at {
            let (text, next) = self.literal(at)?;
            return Some((at, text, next));
        }
        let (text, next) = self.text(place).and_then(whole)?;
        match self.sign(next) {
            b")" => Some((place, text, next + 1)),
            b"," => Some((place, text, self.behind_arguments(next)?)),
            _ => None,
        }
    }

    /// `, { hosts = { "…" }, access = "read" })` behind the name at `place`, if all of it is known and there is not too
    /// much of it.
    pub(super) fn narrowing(&self, place: usize) -> Option<Narrowing> {
        let (_, mut at) = self.text(place)?;
        let mut narrowing = Narrowing::default();
        let is_table = self.sign(at) == b"," && self.sign(at + 1) == b"{";
        at = is_table.then_some(at + 2)?;
        while self.sign(at) != b"}" {
            let key = String::from_utf8_lossy(self.name(at)?).into_owned();
            let (given, next) = self.given(at + 2).filter(|_| self.sign(at + 1) == b"=")?;
            let is_known = narrowing.fields.iter().any(|(known, _)| *known == key);
            narrowing.fields.push((key, given));
            at = self.behind_separator(next)?;
            if is_known || narrowing.check_size().is_err() {
                return None;
            }
        }
        narrowing.fields.sort_by(|(one, _), (other, _)| one.cmp(other));
        (self.sign(at + 1) == b")").then_some(narrowing)
    }

    /// A text, or a list of some.
    fn given(&self, at: usize) -> Option<(Given, usize)> {
        let whole = |at| match self.value(at)? {
            (Meaning::Text(text), next) if text.target.is_whole => Some((text.target.text, next)),
            _ => None,
        };
        if self.sign(at) != b"{" {
            return whole(at).map(|(text, next)| (Given::Text(text), next));
        }
        let (mut texts, mut at) = (Vec::new(), at + 1);
        while self.sign(at) != b"}" {
            let (text, next) = whole(at)?;
            texts.push(text);
            at = self.behind_separator(next).filter(|_| texts.len() <= MAX_PATTERNS)?;
        }
        Some((Given::Texts(texts), at + 1))
    }

    /// The place of the next field of a table, or of its end.
    fn behind_separator(&self, at: usize) -> Option<usize> {
        match self.sign(at) {
            b"," | b";" => Some(at + 1),
            b"}" => Some(at),
            _ => None,
        }
    }

    /// The place behind the bracket that ends a list of arguments, from within it; if that is near.
    pub(super) fn behind_arguments(&self, at: usize) -> Option<usize> {
        let mut depth = 0_usize;
        for at in self.ahead(at) {
            match self.sign(at) {
                b"(" | b"{" | b"[" => depth += 1,
                b")" if depth == 0 => return Some(at + 1),
                b")" | b"}" | b"]" => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        None
    }

    /// One string that is all there.
    pub(super) fn literal(&self, at: usize) -> Option<(String, usize)> {
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
                text.tokens.extend(named.tokens.iter().take(MAX_OPERANDS - text.tokens.len().min(MAX_OPERANDS)));
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
