//! The tokens of a source text, cut as Luau cuts them. Pure.
//!
//! Any bytes are gone through to their end in one pass, without recursion: nothing is assumed of the text, not
//! even that it compiles. Comments are no tokens, and what is inside a string is no token either.

use neoc_abi::survey::MAX_LITERAL_BYTES;

/// A piece of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    /// Where it starts, in bytes.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A name or a keyword.
    Name,
    /// A number.
    Number,
    /// An operator or a bracket.
    Sign,
    /// A string that is all there: in quotes, in long brackets, or in backticks without an expression.
    Text,
    /// The piece of a backtick string before its first expression: `` `a{ ``.
    Begin,
    /// One between two expressions: `}b{`.
    Middle,
    /// The last: `` }c` ``.
    End,
    /// A byte that means nothing.
    Other,
}

/// Signs of more than one byte, longest first.
const SIGNS: [&[u8]; 17] = [
    b"...", b"..=", b"//=", b"..", b"==", b"~=", b"<=", b">=", b"::", b"->", b"//", b"+=", b"-=", b"*=", b"/=", b"%=",
    b"^=",
];

/// Gives all tokens, in order.
pub fn tokens(source: &[u8]) -> Vec<Token> {
    let mut lexer = Lexer { source, at: 0, braces: Vec::new() };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blank();
        let start = lexer.at;
        let Some(kind) = lexer.take() else { return tokens };
        tokens.push(Token { kind, start, end: lexer.at });
    }
}

struct Lexer<'s> {
    source: &'s [u8],
    at: usize,
    /// The braces that are open; whether each is one of a backtick string.
    braces: Vec<bool>,
}

impl Lexer<'_> {
    fn rest(&self) -> &[u8] {
        self.source.get(self.at..).unwrap_or_default()
    }

    fn peek(&self, offset: usize) -> Option<u8> {
        self.source.get(self.at + offset).copied()
    }

    /// Goes on while the bytes are of a kind.
    fn skip_while(&mut self, is_part: impl Fn(u8) -> bool) {
        self.at += self.rest().iter().take_while(|byte| is_part(**byte)).count();
    }

    /// Skips white space and comments.
    fn skip_blank(&mut self) {
        loop {
            self.skip_while(is_space);
            if !self.rest().starts_with(b"--") {
                return;
            }
            self.at += 2;
            if self.long_level().is_some() {
                self.skip_long();
            } else {
                self.skip_while(|byte| byte != b'\n');
            }
        }
    }

    /// Takes one token. None: there is none left.
    fn take(&mut self) -> Option<Kind> {
        let first = self.peek(0)?;
        Some(match first {
            b'"' | b'\'' => {
                self.at += 1;
                self.skip_quoted(first);
                Kind::Text
            }
            b'`' => {
                self.at += 1;
                if self.skip_section() { Kind::Begin } else { Kind::Text }
            }
            b'}' if self.braces.pop() == Some(true) => {
                self.at += 1;
                if self.skip_section() { Kind::Middle } else { Kind::End }
            }
            b'[' if self.long_level().is_some() => {
                self.skip_long();
                Kind::Text
            }
            _ if first == b'_' || first.is_ascii_alphabetic() => {
                self.skip_while(is_name);
                Kind::Name
            }
            _ if first.is_ascii_digit() || first == b'.' && self.peek(1).is_some_and(|next| next.is_ascii_digit()) => {
                self.skip_number();
                Kind::Number
            }
            _ if first.is_ascii_punctuation() => {
                if first == b'{' {
                    self.braces.push(false);
                }
                let sign = SIGNS.iter().find(|sign| self.rest().starts_with(sign));
                self.at += sign.map_or(1, |sign| sign.len());
                Kind::Sign
            }
            _ => {
                self.at += 1;
                Kind::Other
            }
        })
    }

    fn skip_number(&mut self) {
        self.skip_while(|byte| byte.is_ascii_digit() || b"._".contains(&byte));
        if matches!(self.peek(0), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(0), Some(b'+' | b'-')) {
                self.at += 1;
            }
        }
        self.skip_while(is_name);
    }

    /// Skips to behind the closing quote, or to the end of the line where there is none.
    fn skip_quoted(&mut self, quote: u8) {
        while let Some(byte) = self.peek(0) {
            match byte {
                b'\n' => return,
                b'\\' => self.skip_escape(),
                _ => self.at += 1,
            }
            if byte == quote {
                return;
            }
        }
    }

    /// Skips a piece of a backtick string; whether an expression follows.
    fn skip_section(&mut self) -> bool {
        while let Some(byte) = self.peek(0) {
            match byte {
                b'\n' => return false,
                // Its brace begins no expression.
                b'\\' if self.rest().starts_with(b"\\u{") => self.at += 3,
                b'\\' => self.skip_escape(),
                _ => self.at += 1,
            }
            match byte {
                b'`' => return false,
                b'{' => {
                    self.braces.push(true);
                    return true;
                }
                _ => {}
            }
        }
        false
    }

    /// Skips a backslash and what belongs to it, as far as that could be taken for an end.
    fn skip_escape(&mut self) {
        match (self.peek(1), self.peek(2)) {
            (Some(b'z'), _) => {
                self.at += 2;
                self.skip_while(is_space);
            }
            (Some(b'\r'), Some(b'\n')) => self.at += 3,
            (Some(_), _) => self.at += 2,
            (None, _) => self.at += 1,
        }
    }

    /// How many `=` there are in the long bracket that opens here. None: there is none.
    fn long_level(&self) -> Option<usize> {
        let level = self.rest().strip_prefix(b"[")?.iter().take_while(|byte| **byte == b'=').count();
        (self.peek(level + 1) == Some(b'[')).then_some(level)
    }

    /// Skips a long bracket that opens here, to its end or that of the text.
    fn skip_long(&mut self) {
        let level = self.long_level().unwrap_or_default();
        self.at += level + 2;
        while !self.rest().is_empty() {
            self.skip_while(|byte| byte != b']');
            let found = self.rest().iter().skip(1).take_while(|byte| **byte == b'=').count();
            if found == level && self.peek(level + 1) == Some(b']') {
                self.at += level + 2;
                return;
            }
            // What closes it may begin with the bracket that was looked at as an end.
            self.at = (self.at + 1 + found).min(self.source.len());
        }
    }
}

fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

fn is_name(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric()
}

// === Values ===

/// What a string, or a piece of one, stands for. None: it is no UTF-8, or longer than [`MAX_LITERAL_BYTES`].
pub fn value(source: &[u8], token: Token) -> Option<String> {
    let written = source.get(token.start..token.end)?;
    // An escape has at most 12 bytes for one, but for those that skip white space.
    let value = match written.first()? {
        b'[' => long_value(written)?,
        quote @ (b'"' | b'\'' | b'`' | b'}') => {
            let inner = written.get(1..)?;
            let end: &[u8] = if matches!(quote, b'`' | b'}') { b"`{" } else { written.get(..1)? };
            let inner = match inner.split_last() {
                Some((last, inner)) if end.contains(last) => inner,
                _ => inner,
            };
            unescaped(inner)?
        }
        _ => return None,
    };
    String::from_utf8(value).ok()
}

fn long_value(written: &[u8]) -> Option<Vec<u8>> {
    let level = written.iter().skip(1).take_while(|byte| **byte == b'=').count();
    let inner = written.get(level + 2..written.len().checked_sub(level + 2)?)?;
    let inner = inner.strip_prefix(b"\r\n").or_else(|| inner.strip_prefix(b"\n")).unwrap_or(inner);
    let mut value = Vec::new();
    for (index, &byte) in inner.iter().enumerate() {
        if byte == b'\r' && inner.get(index + 1) == Some(&b'\n') {
            continue;
        }
        push(&mut value, &[byte])?;
    }
    Some(value)
}

fn push(value: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    value.extend_from_slice(bytes);
    (value.len() <= MAX_LITERAL_BYTES).then_some(())
}

fn unescaped(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut value = Vec::new();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'\\' {
            push(&mut value, &[byte])?;
            rest = after;
            continue;
        }
        let (&escape, after) = after.split_first()?;
        rest = after;
        match escape {
            b'z' => {
                let n_blank = rest.iter().take_while(|byte| is_space(**byte)).count();
                rest = rest.get(n_blank..)?;
            }
            b'x' => {
                push(&mut value, &[number(rest.get(..2)?, 16)?.try_into().ok()?])?;
                rest = rest.get(2..)?;
            }
            b'u' => {
                let digits = rest.strip_prefix(b"{")?;
                let length = digits.iter().position(|byte| *byte == b'}')?;
                // A surrogate has an escape, and is no text all the same.
                let character = char::from_u32(number(digits.get(..length)?, 16)?)?;
                push(&mut value, character.encode_utf8(&mut [0; 4]).as_bytes())?;
                rest = digits.get(length + 1..)?;
            }
            _ if escape.is_ascii_digit() => {
                let more = rest.iter().take(2).take_while(|byte| byte.is_ascii_digit()).count();
                let digits = [&[escape], rest.get(..more)?].concat();
                push(&mut value, &[number(&digits, 10)?.try_into().ok()?])?;
                rest = rest.get(more..)?;
            }
            b'\r' => {
                push(&mut value, b"\n")?;
                rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            }
            _ => push(&mut value, &[control(escape)])?,
        }
    }
    Some(value)
}

/// What a letter behind a backslash stands for. Others stand for themselves.
fn control(escape: u8) -> u8 {
    match escape {
        b'a' => 0x07,
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 0x0b,
        other => other,
    }
}

fn number(digits: &[u8], radix: u32) -> Option<u32> {
    // A sign would pass the parser.
    let digits = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    u32::from_str_radix(digits, radix).ok()
}
