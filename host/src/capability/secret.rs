//! What secrets are: read once for a policy, put into requests that were decided on, and shown to nobody.
//!
//! The values kept here are wiped when they go. A copy goes into each request's head, which hyper and TLS write to
//! the wire from buffers of their own; those are freed and not wiped.

use std::{
    collections::HashMap,
    env, fmt,
    fs::{self, File},
    io::{self, Read},
    os::unix::ffi::OsStringExt,
    path::Path,
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue};
use neoc_abi::{
    OperationError,
    secret::{Piece, Template},
};
use zeroize::Zeroizing;

use crate::policy::{Place, Tenant, secret::Source};

/// Longest secret, in bytes.
const MAX_SECRET_BYTES: usize = 4096;

/// The secrets of all tenants. Not even `Debug` shows more than how many.
#[derive(Default)]
pub struct Secrets {
    /// By tenant, then by name.
    values: HashMap<String, HashMap<String, Zeroizing<Vec<u8>>>>,
}

/// A secret that cannot be used. Says nothing of its value.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {key}: {rule}")]
pub struct Problem {
    place: Place,
    key: String,
    rule: String,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n_values: usize = self.values.values().map(HashMap::len).sum();
        write!(f, "Secrets({n_values})")
    }
}

impl Secrets {
    /// Reads them.
    ///
    /// # Errors
    /// Those that cannot be used, all of them.
    pub fn read(tenants: &[Arc<Tenant>]) -> Result<Self, Vec<Problem>> {
        let (mut values, mut problems) = (HashMap::new(), Vec::new());
        for tenant in tenants.iter().filter(|tenant| !tenant.secrets.is_empty()) {
            let mut of_tenant = HashMap::new();
            for (name, secret) in &tenant.secrets {
                let read = match &secret.source {
                    Source::File(file) => from_file(file),
                    Source::Variable(variable) => from_variable(variable),
                };
                match read.and_then(checked) {
                    Ok(value) => drop(of_tenant.insert(name.clone(), value)),
                    Err(rule) => {
                        let key = format!("tenant.{}.secret.{name}.from", tenant.name);
                        problems.push(Problem { place: secret.place.clone(), key, rule });
                    }
                }
            }
            values.insert(tenant.name.clone(), of_tenant);
        }
        if problems.is_empty() { Ok(Self { values }) } else { Err(problems) }
    }

    /// Adds headers to a request of a tenant's, with the secrets in them.
    ///
    /// # Errors
    /// [`neoc_abi::ErrorKind::Io`] for a secret that was not read; then none of the headers may be sent.
    pub fn put_into(
        &self,
        headers: &mut HeaderMap,
        tenant: &str,
        templates: &[(HeaderName, Template)],
    ) -> Result<(), OperationError> {
        for (name, template) in templates {
            let filled = self.fill(tenant, template);
            let value = filled.and_then(|filled| HeaderValue::from_bytes(&filled).ok());
            let mut value = value
                .ok_or_else(|| OperationError::io(format!("hyper: the value of the header {name} cannot be made")))?;
            value.set_sensitive(true);
            headers.append(name.clone(), value);
        }
        Ok(())
    }

    fn fill(&self, tenant: &str, template: &Template) -> Option<Zeroizing<Vec<u8>>> {
        let values = self.values.get(tenant)?;
        // Never more: growing would leave a copy behind.
        let room = template.pieces.iter().map(room).sum();
        let mut filled = Zeroizing::new(Vec::with_capacity(room));
        for piece in &template.pieces {
            match piece {
                Piece::Text(text) => filled.extend_from_slice(text),
                Piece::Secret(secret) => filled.extend_from_slice(values.get(secret)?),
                Piece::Basic { user, secret } => {
                    let value = values.get(secret)?;
                    let mut both = Zeroizing::new(Vec::with_capacity(user.len() + 1 + value.len()));
                    both.extend_from_slice(user.as_bytes());
                    both.push(b':');
                    both.extend_from_slice(value);
                    filled.extend_from_slice(Zeroizing::new(STANDARD.encode(&both)).as_bytes());
                }
            }
        }
        Some(filled)
    }
}

/// Most bytes that a piece can become.
fn room(piece: &Piece) -> usize {
    match piece {
        Piece::Text(text) => text.len(),
        Piece::Secret(_) => MAX_SECRET_BYTES,
        Piece::Basic { user, .. } => (user.len() + 1 + MAX_SECRET_BYTES).div_ceil(3) * 4,
    }
}

fn from_file(file: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let unreadable = |error: io::Error| format!("cannot read {}: {error}", file.display());
    // A pipe or a device: reading one may not end.
    if !fs::metadata(file).map_err(unreadable)?.is_file() {
        return Err(format!("{} is not a file", file.display()));
    }
    // Room for all that is read, so that no copy is left behind by growing.
    let mut content = Zeroizing::new(vec![0; MAX_SECRET_BYTES + 3]);
    let mut opened = File::open(file).map_err(unreadable)?;
    let mut n_read = 0;
    while n_read < content.len() {
        match opened.read(&mut content[n_read..]) {
            Ok(0) => break,
            Ok(more) => n_read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    content.truncate(n_read);
    if content.ends_with(b"\n") {
        content.pop();
        if content.ends_with(b"\r") {
            content.pop();
        }
    }
    Ok(content)
}

fn from_variable(variable: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let value = env::var_os(variable).ok_or_else(|| format!("the environment has no variable {variable}"))?;
    Ok(Zeroizing::new(value.into_vec()))
}

/// A value that can stand in a header.
fn checked(value: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, String> {
    let text = std::str::from_utf8(&value).map_err(|_| "the secret is not UTF-8".to_owned())?;
    let rule = if text.is_empty() {
        "the secret is empty"
    } else if text.len() > MAX_SECRET_BYTES {
        "the secret is longer than 4 KiB"
    } else if text.chars().any(char::is_control) {
        "the secret has a line break or another control character"
    } else if text.trim() != text {
        "the secret has spaces around it"
    } else {
        return Ok(value);
    };
    Err(rule.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::policy::Policy;

    use super::*;

    fn read(folder: &Path, table: &str) -> Result<Secrets, String> {
        let text = format!(
            "[tenant.a]\nscript = \"a.luau\"\n[tenant.a.secret.key]\n{table}\norigins = [\"https://a.example\"]\n"
        );
        let policy = Policy::parse(&text, &folder.join("p.toml")).expect("valid");
        Secrets::read(&policy.tenants).map_err(|problems| {
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            problems.join("\n").replace(&format!("{}/", folder.display()), "")
        })
    }

    fn of_file(content: &[u8]) -> Result<Secrets, String> {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("key"), content).expect("written");
        read(folder.path(), "from = \"file:key\"")
    }

    fn filled(secrets: &Secrets, pieces: Vec<Piece>) -> Result<String, OperationError> {
        let mut headers = HeaderMap::new();
        let name = HeaderName::from_static("x-key");
        secrets.put_into(&mut headers, "a", &[(name, Template { pieces })])?;
        assert_eq!(format!("{headers:?}"), "{\"x-key\": Sensitive}");
        Ok(String::from_utf8_lossy(headers["x-key"].as_bytes()).into_owned())
    }

    #[test]
    fn a_secret_is_the_files_content_without_the_line_feed_at_its_end() {
        let key = || vec![Piece::Secret("key".into())];
        let longest = "x".repeat(MAX_SECRET_BYTES);
        for (content, expected) in [
            ("hush", "hush"),
            ("hush\n", "hush"),
            ("hush\r\n", "hush"),
            ("é %s", "é %s"),
            (longest.as_str(), longest.as_str()),
            (format!("{longest}\r\n").as_str(), longest.as_str()),
        ] {
            let secrets = of_file(content.as_bytes()).expect("it can be used");
            assert_eq!(filled(&secrets, key()).expect("filled"), expected);
            assert_eq!(format!("{secrets:?}"), "Secrets(1)");
        }
    }

    #[test]
    fn a_secret_that_no_header_can_have_is_refused_without_being_shown() {
        let too_long = "x".repeat(MAX_SECRET_BYTES + 1);
        for (content, rule) in [
            (&b""[..], "the secret is empty"),
            (b"\n", "the secret is empty"),
            (b"hush\n\n", "the secret has a line break or another control character"),
            (b"hush\nhush", "the secret has a line break or another control character"),
            (b"hu\0sh", "the secret has a line break or another control character"),
            (b"hu\tsh", "the secret has a line break or another control character"),
            (b"hu\x7fsh", "the secret has a line break or another control character"),
            (b" hush", "the secret has spaces around it"),
            (b"hush \n", "the secret has spaces around it"),
            (b"hu\xffsh", "the secret is not UTF-8"),
            (too_long.as_bytes(), "the secret is longer than 4 KiB"),
        ] {
            let error = of_file(content).expect_err("it cannot be used");
            assert_eq!(error, format!("p.toml:3: tenant.a.secret.key.from: {rule}"));
        }
    }

    #[test]
    fn a_secret_that_is_not_there_is_said_to_be_missing() {
        let folder = tempfile::tempdir().expect("a folder");
        for (table, expected) in [
            (
                "from = \"file:none\"",
                "p.toml:3: tenant.a.secret.key.from: cannot read none: No such file or directory (os error 2)",
            ),
            ("from = \"file:.\"", "p.toml:3: tenant.a.secret.key.from: . is not a file"),
            (
                "from = \"env:NEOC_NO_SUCH\"",
                "p.toml:3: tenant.a.secret.key.from: the environment has no variable NEOC_NO_SUCH",
            ),
        ] {
            assert_eq!(read(folder.path(), table).expect_err("missing"), expected);
        }
    }

    #[test]
    fn pieces_are_filled_in_order() {
        let secrets = of_file(b"open sesame").expect("it can be used");
        let (text, key) = (|text: &str| Piece::Text(text.into()), || Piece::Secret("key".into()));
        let basic = |user: &str| Piece::Basic { user: user.into(), secret: "key".into() };
        for (pieces, expected) in [
            (vec![text("Bearer "), key()], "Bearer open sesame"),
            (vec![key(), text(":"), key()], "open sesame:open sesame"),
            // RFC 7617, section 2.
            (vec![text("Basic "), basic("Aladdin")], "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        ] {
            assert_eq!(filled(&secrets, pieces).expect("filled"), expected);
        }
        let unknown = filled(&secrets, vec![Piece::Secret("other".into())]).expect_err("there is none");
        assert_eq!(unknown.message, "hyper: the value of the header x-key cannot be made");
    }
}
