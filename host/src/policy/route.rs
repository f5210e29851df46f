//! Which tenant a request belongs to.
//!
//! | form | matches |
//! |---|---|
//! | `/acme` | that path, for any host |
//! | `/acme/*` | `/acme` and every path below it |
//! | `/*` | every path |
//! | `acme.localhost/*` | every path of that host |
//! | `acme.localhost/api/*` | the host's paths below `/api`, and `/api` itself |
//!
//! The longest match wins: a route with a host beats one without, then more segments beat fewer, then
//! an exact route beats a wildcard.
//!
//! Paths are compared as requested, byte by byte. Nothing is decoded or resolved first, so there is no
//! second reading of a path by which `/acme/../other` or `/acme%2f..%2fother` would become another
//! tenant's: both begin with `/acme` and only a tenant that owns such a prefix gets them. For the same
//! reason a route in the file holds no `%` and no dot segments.

use std::{borrow::Cow, collections::HashMap, fmt, ops::Range};

use super::{
    Place,
    error::{Broken, Errors},
    origin::is_host_name,
};

/// Longest route, in bytes. It bounds what a lookup has to hash.
const MAX_ROUTE_BYTES: usize = 512;

/// A route as enforced.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// Lower case, without port. Absent: any host.
    pub host: Option<String>,
    /// What the path is or begins with: `/acme`, or nothing for `/*`.
    pub path: String,
    /// Whether paths below match too.
    pub wildcard: bool,
}

/// A route with its owner and its place in the file.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) route: Route,
    pub(super) tenant: String,
    pub(super) key: String,
    pub(super) span: Range<usize>,
}

/// Finds a route in a few hash look-ups, however many tenants there are.
#[derive(Debug, Clone, Default)]
pub(super) struct RouteTable {
    by_host: HashMap<String, Paths>,
    any_host: Paths,
}

/// The paths of one host, each with the index of its tenant.
#[derive(Debug, Clone, Default)]
struct Paths {
    exact: HashMap<String, usize>,
    prefixes: HashMap<String, usize>,
    /// Longest key of `prefixes`. A request cannot make a lookup hash more than this per segment.
    longest_prefix: usize,
}

// === impl Route ===

impl Route {
    /// Parses a route as written.
    ///
    /// # Errors
    /// The rule that the text breaks, with an example.
    pub fn parse(text: &str) -> Result<Self, Broken> {
        let example = "\"/acme/*\" or \"acme.localhost/*\"";
        if text.contains("://") {
            return Err(Broken::new("a route has no scheme").write("\"acme.localhost/*\""));
        }
        if text.len() > MAX_ROUTE_BYTES {
            return Err(Broken::new(format!("a route has at most {MAX_ROUTE_BYTES} bytes")));
        }
        let slash =
            text.find('/').ok_or_else(|| Broken::new("a route has a path, which begins with /").write(example))?;
        let (host, path) = text.split_at(slash);
        let host = if host.is_empty() { None } else { Some(self::host(host)?) };
        let (path, wildcard) = match path.strip_suffix("/*") {
            Some(path) => (path, true),
            None => (path, false),
        };
        // `/` alone is the root, exactly; every other route names its segments.
        if path != "/" {
            path.split('/').skip(1).try_for_each(segment)?;
        } else if wildcard {
            return Err(Broken::new("an empty segment").write("\"/*\""));
        }
        Ok(Self { host, path: path.to_owned(), wildcard })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, path, wildcard } = self;
        write!(f, "{}{path}{}", host.as_deref().unwrap_or(""), if *wildcard { "/*" } else { "" })
    }
}

fn host(text: &str) -> Result<String, Broken> {
    if text.contains('*') {
        return Err(Broken::new("a route names one host").write("\"acme.localhost/*\""));
    }
    if text.contains(':') {
        let broken = Broken::new("a route's host has no port, because every port of the host is served alike");
        return Err(broken.write("\"acme.localhost/*\""));
    }
    if !is_host_name(text) {
        return Err(Broken::new("the host is a name in lower case").write("\"acme.localhost/*\" or \"/acme/*\""));
    }
    Ok(text.to_owned())
}

fn segment(text: &str) -> Result<(), Broken> {
    let example = "\"/acme/*\"";
    if text.contains('*') {
        return Err(Broken::new("* stands alone, as the last segment").write(example));
    }
    if text.is_empty() {
        return Err(Broken::new("an empty segment").write("\"/acme\" or \"/acme/*\""));
    }
    if text == "." || text == ".." {
        return Err(Broken::new("a route is compared as requested, and has no . or ..").write(example));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()+,;=:@".contains(&byte);
    if !text.bytes().all(plain) {
        let broken = Broken::new("a segment is of letters, digits and -._~!$&'()+,;=:@, with nothing percent-encoded");
        return Err(broken.write(example));
    }
    Ok(())
}

// === impl RouteTable ===

impl RouteTable {
    /// Builds the table. `index` gives a tenant's place by its name. Two identical routes are an error at
    /// the later one, which names the earlier.
    pub(super) fn build(
        mut routes: Vec<Placed>,
        index: impl Fn(&str) -> Option<usize>,
        errors: &mut Errors<'_>,
    ) -> Self {
        routes.sort_by_key(|placed| placed.span.start);
        let mut table = Self::default();
        let mut seen: HashMap<Route, (String, Place)> = HashMap::with_capacity(routes.len());
        for Placed { route, tenant, key, span } in routes {
            if let Some((owner, place)) = seen.get(&route) {
                let rule = format!("tenant.{owner} has the same route at {place}");
                errors.add(&key, span, Broken::new(rule).help("give each route to one tenant, once"));
                continue;
            }
            if let Some(index) = index(&tenant) {
                table.insert(route.clone(), index);
            }
            seen.insert(route, (tenant, errors.place(&span)));
        }
        table
    }

    /// The index of the tenant that a request belongs to.
    pub(super) fn find(&self, host: Option<&str>, path: &str) -> Option<usize> {
        // A path such as `*` or one without its slash is nobody's.
        if !path.starts_with('/') {
            return None;
        }
        let by_host = host.and_then(|host| self.by_host.get(host_name(host).as_ref()));
        by_host.and_then(|paths| paths.find(path)).or_else(|| self.any_host.find(path))
    }

    fn insert(&mut self, route: Route, tenant: usize) {
        let Route { host, path, wildcard } = route;
        let paths = match host {
            Some(host) => self.by_host.entry(host).or_default(),
            None => &mut self.any_host,
        };
        if wildcard {
            paths.longest_prefix = paths.longest_prefix.max(path.len());
            paths.prefixes.insert(path, tenant);
        } else {
            paths.exact.insert(path, tenant);
        }
    }
}

impl Paths {
    fn find(&self, path: &str) -> Option<usize> {
        if let Some(tenant) = self.exact.get(path) {
            return Some(*tenant);
        }
        // From the longest prefix that any route has to the shortest, at segment boundaries only.
        let mut prefix = path;
        loop {
            if prefix.len() <= self.longest_prefix
                && let Some(tenant) = self.prefixes.get(prefix)
            {
                return Some(*tenant);
            }
            let boundary = prefix.bytes().take(self.longest_prefix.saturating_add(1)).rposition(|byte| byte == b'/');
            prefix = &prefix[..boundary?];
        }
    }
}

/// The name in a `Host` header: lower case, without port and trailing dot.
fn host_name(header: &str) -> Cow<'_, str> {
    // An IPv6 address holds colons; its port comes behind the bracket.
    let end = if header.starts_with('[') { header.find(']').map(|at| at + 1) } else { header.find(':') };
    let name = &header[..end.unwrap_or(header.len())];
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table in which the n-th route belongs to tenant n.
    fn table(routes: &[&str]) -> RouteTable {
        let mut table = RouteTable::default();
        for (index, text) in routes.iter().enumerate() {
            table.insert(Route::parse(text).expect(text), index);
        }
        table
    }

    fn check(routes: &[&str], host: Option<&str>, path: &str, expected: Option<&str>) {
        let found = table(routes).find(host, path).map(|index| routes[index]);
        assert_eq!(found, expected, "{host:?} {path}");
    }

    #[test]
    fn the_longest_match_wins() {
        let routes =
            ["/*", "/acme", "/acme/*", "/acme/api/*", "/acme/api/v1", "acme.localhost/*", "acme.localhost/api/*"];
        for (host, path, expected) in [
            (None, "/", Some("/*")),
            (None, "/x", Some("/*")),
            (None, "/acme", Some("/acme")),
            (None, "/acme/", Some("/acme/*")),
            (None, "/acme/x", Some("/acme/*")),
            (None, "/acmex", Some("/*")),
            (None, "/Acme/x", Some("/*")),
            (None, "/acme/api", Some("/acme/api/*")),
            (None, "/acme/api/v1", Some("/acme/api/v1")),
            (None, "/acme/api/v1/", Some("/acme/api/*")),
            (None, "/acme/apix", Some("/acme/*")),
            (None, "//acme/x", Some("/*")),
            (Some("other.localhost"), "/acme/api/v1", Some("/acme/api/v1")),
            (Some("acme.localhost"), "/acme/api/v1", Some("acme.localhost/*")),
            (Some("acme.localhost"), "/api", Some("acme.localhost/api/*")),
            (Some("acme.localhost"), "/apis", Some("acme.localhost/*")),
        ] {
            check(&routes, host, path, expected);
        }
    }

    #[test]
    fn a_wildcard_matches_its_own_prefix_too() {
        for path in ["/acme", "/acme/", "/acme/x", "/acme//x", "/acme/x/y/z"] {
            check(&["/acme/*"], None, path, Some("/acme/*"));
        }
        for path in ["/", "", "*", "acme", "/acm", "/acmee", "/x/acme"] {
            check(&["/acme/*"], None, path, None);
        }
    }

    #[test]
    fn the_root_is_a_route_of_its_own() {
        check(&["/"], None, "/", Some("/"));
        check(&["/"], None, "/x", None);
        check(&["/", "/*"], None, "/", Some("/"));
    }

    #[test]
    fn a_host_is_the_same_in_any_case_with_any_port_and_with_a_final_dot() {
        for host in ["acme.localhost", "ACME.LocalHost", "acme.localhost:8080", "acme.localhost.", "Acme.localhost.:80"]
        {
            check(&["acme.localhost/*"], Some(host), "/", Some("acme.localhost/*"));
        }
        for host in [
            "",
            ":80",
            ".",
            "localhost",
            "x.acme.localhost",
            "acme.localhost..",
            "acme.localhostx",
            "[::1]:80",
            "[",
            "acme.localhost@x",
        ] {
            check(&["acme.localhost/*"], Some(host), "/", None);
        }
    }

    #[test]
    fn no_spelling_of_a_path_reaches_another_tenant() {
        let routes = ["/acme/*", "/other/*"];
        for path in [
            "/acme/../other/x",
            "/acme/./../other",
            "/acme/%2e%2e/other",
            "/acme/%2E%2E/other",
            "/acme/..%2fother",
            "/acme/..%2Fother",
            "/acme/..\\other",
            "/acme/..%5cother",
            "/acme/;/../other",
            "/acme//other",
            "/acme/..;/other",
        ] {
            check(&routes, None, path, Some("/acme/*"));
        }
        // Read in any other way, these would be somebody's; as they stand they are nobody's.
        for path in [
            "/%61cme/x",
            "/acme%2fx",
            "/x/../acme",
            "/./acme",
            "//acme",
            "\\acme",
            "/acme\\x",
            "/.%2e/acme",
            "/acme;x/y",
            "/acme%00/x",
        ] {
            check(&routes, None, path, None);
        }
    }

    #[test]
    fn routes_that_could_be_read_two_ways_are_refused() {
        for text in [
            "",
            "acme",
            "*",
            "/*/x",
            "/a*",
            "/a/*b",
            "/**",
            "/a/**",
            "//",
            "//*",
            "/a/",
            "/a//b",
            "/./a",
            "/a/../b",
            "/a%20b",
            "/a b",
            "/a?x",
            "/a#x",
            "/é",
            "ACME.localhost/*",
            "acme.localhost:80/*",
            "*.localhost/*",
            "acme..localhost/*",
            "-a/*",
            "http://acme/*",
            " /a",
            "/a ",
            "acme.localhost./*",
            "[::1]/*",
            "a@b/*",
            "/a\\b",
        ] {
            assert!(Route::parse(text).is_err(), "{text:?}");
        }
        assert!(Route::parse(&format!("/{}", "a".repeat(MAX_ROUTE_BYTES))).is_err());
    }

    #[test]
    fn a_route_is_shown_as_it_was_written() {
        for text in ["/", "/*", "/acme", "/acme/*", "acme.localhost/*", "acme.localhost/api/*", "acme.localhost/api"] {
            assert_eq!(Route::parse(text).expect(text).to_string(), text);
        }
    }

    #[test]
    fn a_hostile_path_costs_no_more_than_the_longest_route() {
        let routes: Vec<String> = (0..10_000).map(|n| format!("/tenant{n}/*")).collect();
        let routes: Vec<&str> = routes.iter().map(String::as_str).collect();
        let table = table(&routes);
        let slashes = "/".repeat(64 * 1024);
        let started = std::time::Instant::now();
        for _ in 0..1_000 {
            assert_eq!(table.find(None, &slashes), None);
            assert_eq!(table.find(None, "/tenant9999/x"), Some(9999));
        }
        assert!(started.elapsed().as_millis() < 1_000, "{:?}", started.elapsed());
    }
}
