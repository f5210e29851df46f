//! What names come to mean, and when they no longer do.

use super::{MAX_BYTES, MAX_OPERANDS, Meaning, Reader};

impl<'s> Reader<'s> {
    /// A new name means this. None: it means nothing.
    fn learn(&mut self, name: &'s [u8], meaning: Option<Meaning>) {
        if let Some(Meaning::Text(text)) = &meaning {
            self.n_known_bytes = self.n_known_bytes.saturating_add(text.target.text.len());
        }
        match meaning.filter(|_| self.n_known_bytes <= MAX_BYTES) {
            Some(meaning) => drop(self.meanings.insert(name, meaning)),
            None => drop(self.meanings.remove(name)),
        }
    }

    /// A name that was there before means this as well. Which of the two comes last is for the run to tell.
    pub(super) fn assign(&mut self, name: &'s [u8], meaning: Option<Meaning>) {
        let meaning =
            if self.meanings.contains_key(name) { Meaning::Unsure } else { meaning.unwrap_or(Meaning::Unsure) };
        self.learn(name, Some(meaning));
    }

    /// `a, b = …`: more than one name at once.
    pub(super) fn forget_assigned(&mut self, at: usize) {
        if self.sign(at + 1) != b"," || matches!(self.sign_before(at), b"{" | b"," | b"(") {
            return;
        }
        let names = (0..MAX_OPERANDS).map(|index| at + 2 * index);
        let is_name = |at: &usize| self.name(*at).is_some() && matches!(self.sign(at + 1), b"," | b"=");
        let names: Vec<usize> = names.take_while(is_name).collect();
        if names.last().is_some_and(|last| self.sign(last + 1) == b"=") {
            let names: Vec<_> = names.into_iter().filter_map(|at| self.name(at)).collect();
            names.into_iter().for_each(|name| self.assign(name, None));
        }
    }

    /// `x = …` and `x ..= …` as statements: in a table it is a field.
    pub(super) fn is_assigned(&self, at: usize) -> bool {
        let is_field = matches!(self.sign_before(at), b"{" | b"," | b";");
        !is_field && matches!(self.sign(at + 1), b"=" | b"..=")
    }

    /// `local a: string, b = "x", require("y")`, behind its first word.
    pub(super) fn declare(&mut self, mut at: usize) {
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
    pub(super) fn forget_parameters(&mut self, at: usize) {
        if let Some(name) = self.name(at).filter(|_| matches!(self.sign(at + 1), b"(" | b"<")) {
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
    pub(super) fn forget_until_in(&mut self, at: usize) {
        for at in self.ahead(at) {
            match self.name(at) {
                Some(b"in") => return,
                Some(name) => drop(self.meanings.remove(name)),
                None if self.sign(at) == b"=" => return,
                None => {}
            }
        }
    }
}
