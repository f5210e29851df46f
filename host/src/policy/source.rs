//! The files of a policy, and places in them.
//!
//! All files together are one run of bytes, each behind the one before: a span is a range of that run, so it
//! tells file and line by itself, and no code that carries a span needs to carry a file too.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Longest policy file, in bytes.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;

/// Longest line that is shown as it is, in bytes.
const MAX_SHOWN_LINE_BYTES: usize = 1_000;

/// A line of a policy file, shown as `policies/demo.toml:12`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The file, as it was named to the parser.
    pub file: Arc<Path>,
    /// Counted from 1.
    pub line: u32,
}

/// One file of a policy, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// As errors name it. Relative paths in the text start at its folder.
    pub file: Arc<Path>,
    /// The text, up to where it could be read.
    pub text: Arc<str>,
    /// Why there is no more of it, if there should be.
    pub(super) cut: Option<&'static str>,
}

/// An element of `include`: where to look for further files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Include {
    /// As written: a file, or a folder and names with one `*`.
    pub pattern: String,
    pub(super) key: String,
    pub(super) span: Range<usize>,
}

/// Why an [`Include`] brings no file, or not all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    pub(super) include: Include,
    pub(super) rule: String,
    pub(super) help: &'static str,
}

/// Where each byte of the files stands.
pub(super) struct Sources<'s> {
    files: Vec<File<'s>>,
}

struct File<'s> {
    source: &'s Source,
    /// The first byte's offset in the run.
    start: usize,
    /// Where each line starts, in bytes of the file.
    lines: Vec<usize>,
}

// === impl Place ===

impl Place {
    /// A place. Lines are counted from 1.
    pub fn new(file: impl Into<Arc<Path>>, line: u32) -> Self {
        Self { file: file.into(), line }
    }

    /// As a script may know it, without the operator's folders: `demo.toml:12`.
    pub fn in_short(&self) -> String {
        let file = self.file.file_name().unwrap_or_default();
        format!("{}:{}", Path::new(file).display(), self.line)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

// === impl Source ===

impl Source {
    /// A file with this text.
    pub fn new(file: &Path, text: &str) -> Self {
        Self { file: file.into(), text: text.into(), cut: None }
    }

    /// A file as read. To be read no further than one byte over [`MAX_FILE_BYTES`]: that is enough to refuse it.
    pub fn from_bytes(file: &Path, bytes: Vec<u8>) -> Self {
        if bytes.len() > MAX_FILE_BYTES {
            return Self { cut: Some("a policy file has at most 1 MiB"), ..Self::new(file, "") };
        }
        match String::from_utf8(bytes) {
            Ok(text) => Self::new(file, &text),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(&error.as_bytes()[..valid]).into_owned();
                Self { cut: Some("not UTF-8"), ..Self::new(file, &text) }
            }
        }
    }
}

// === impl Include ===

impl Include {
    /// Says why it brings no file. `help`: what to do about it.
    pub fn unread(self, rule: impl Into<String>, help: &'static str) -> Unread {
        Unread { include: self, rule: rule.into(), help }
    }
}

// === impl Sources ===

impl<'s> Sources<'s> {
    /// `sources` is not empty; the first one is the main file.
    pub(super) fn new(sources: &'s [Source]) -> Self {
        let mut start = 0;
        let mut files = Vec::with_capacity(sources.len());
        for source in sources {
            let breaks = source.text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
            let lines = std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect();
            files.push(File { source, start, lines });
            // One more than its bytes: a file's end is another place than the next one's start.
            start += source.text.len() + 1;
        }
        Self { files }
    }

    /// The n-th file, and where its bytes start.
    pub(super) fn get(&self, index: usize) -> Option<(&'s Source, usize)> {
        self.files.get(index).map(|file| (file.source, file.start))
    }

    /// File, line and column, the latter in characters and both from 1.
    pub(super) fn find(&self, span: &Range<usize>) -> (Place, u32) {
        let file = self.file(span);
        let (line, start) = file.line(span);
        let before = file.source.text.get(start..span.start - file.start).unwrap_or("");
        (Place::new(Arc::clone(&file.source.file), count(line)), count(before.chars().count() + 1))
    }

    /// The line that a span starts on, and what of the line the span covers. `None` for a line that is too long to
    /// be shown.
    pub(super) fn line(&self, span: &Range<usize>) -> Option<(&'s str, Range<usize>)> {
        let file = self.file(span);
        let (line, start) = file.line(span);
        let end = file.lines.get(line).map_or(file.source.text.len(), |next| next - 1);
        let text = file.source.text.get(start..end).filter(|text| text.len() <= MAX_SHOWN_LINE_BYTES)?;
        let text = text.strip_suffix('\r').unwrap_or(text);
        // A span may begin at the end of the line before, and end on a further one.
        let within = |offset: usize| offset.saturating_sub(file.start + start).min(text.len());
        let covered = within(span.start)..within(span.end).max(within(span.start));
        text.get(covered.clone())?;
        Some((text, covered))
    }

    /// What stands there.
    pub(super) fn text(&self, span: &Range<usize>) -> Option<&'s str> {
        let file = self.file(span);
        file.source.text.get(span.start - file.start..span.end.checked_sub(file.start)?)
    }

    /// The folder of the file that a place is in.
    pub(super) fn folder(&self, span: &Range<usize>) -> PathBuf {
        self.file(span).source.file.parent().unwrap_or(Path::new("")).to_owned()
    }

    fn file(&self, span: &Range<usize>) -> &File<'s> {
        // The first file starts at 0.
        let index = self.files.partition_point(|file| file.start <= span.start).max(1);
        &self.files[index - 1]
    }
}

impl File<'_> {
    /// The line that a span starts on, from 1, and where that line starts in the file.
    fn line(&self, span: &Range<usize>) -> (usize, usize) {
        let offset = span.start - self.start;
        // The first line starts at 0, so there is always one at or before the offset.
        let line = self.lines.partition_point(|start| *start <= offset).max(1);
        (line, self.lines[line - 1])
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_tells_file_line_and_column_in_characters() {
        let files = [("a.toml", "a\nbé = 1\n\nz"), ("b.toml", ""), ("sub/c.toml", "\nx")];
        let files = files.map(|(file, text)| Source::new(Path::new(file), text));
        let sources = Sources::new(&files);
        for (offset, place, column) in [
            (0, "a.toml:1", 1),
            (1, "a.toml:1", 2),
            (2, "a.toml:2", 1),
            (5, "a.toml:2", 3),
            (11, "a.toml:4", 1),
            (12, "a.toml:4", 2),
            (13, "b.toml:1", 1),
            (14, "sub/c.toml:1", 1),
            (15, "sub/c.toml:2", 1),
            (16, "sub/c.toml:2", 2),
            (99, "sub/c.toml:2", 1),
        ] {
            let (found, found_column) = sources.find(&(offset..offset));
            assert_eq!((found.to_string().as_str(), found_column), (place, column), "offset {offset}");
        }
        assert_eq!(sources.line(&(3..12)), Some(("bé = 1", 1..7)));
        assert_eq!(sources.line(&(13..13)), Some(("", 0..0)));
        assert_eq!(sources.text(&(15..16)), Some("x"));
        assert_eq!(sources.folder(&(15..16)), Path::new("sub"));
        assert_eq!(sources.folder(&(0..1)), Path::new(""));
    }

    #[test]
    fn bytes_that_are_no_text_end_the_file_there() {
        let source = Source::from_bytes(Path::new("p.toml"), b"a = 1\n\xff".to_vec());
        assert_eq!((&*source.text, source.cut), ("a = 1\n", Some("not UTF-8")));
        let full = Source::from_bytes(Path::new("p.toml"), vec![b'#'; MAX_FILE_BYTES]);
        assert_eq!(full.cut, None);
        assert!(Source::from_bytes(Path::new("p.toml"), vec![b'#'; MAX_FILE_BYTES + 1]).cut.is_some());
    }
}
