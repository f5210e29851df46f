//! What differs between two policies, by the keys as they are written.
//!
//! The texts are compared and not what they mean, so that no key can be forgotten here: a limit, a rule, a
//! profile. A line that only moved is no change.

use std::collections::BTreeSet;

use super::Policy;

/// Most keys that are named; of more only the count is told.
const MAX_KEYS: usize = 100;

/// What differs between two policies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Names of tenants that are new, sorted.
    pub added: Vec<String>,
    /// Names of tenants that are gone, sorted.
    pub removed: Vec<String>,
    /// Keys with another value, that came, or that went, such as `tenant.acme.limits.cpu`; sorted, at most 100.
    /// Those of tenants that were added or removed are left out.
    pub keys: Vec<String>,
    /// How many keys there are.
    pub n_keys: usize,
}

impl Changes {
    /// Compares.
    pub fn between(before: &Policy, after: &Policy) -> Self {
        let names = |policy: &Policy| policy.tenants.iter().map(|tenant| tenant.name.clone()).collect::<BTreeSet<_>>();
        let (old, new) = (names(before), names(after));
        let added: Vec<_> = new.difference(&old).cloned().collect();
        let removed: Vec<_> = old.difference(&new).cloned().collect();
        let mut keys = BTreeSet::new();
        compare("", &written(before), &written(after), &mut keys);
        let of_another = |key: &str| {
            let name = key.strip_prefix("tenant.").map(|rest| rest.split('.').next().unwrap_or_default());
            name.is_some_and(|name| added.iter().chain(&removed).any(|known| known == name))
        };
        let mut keys: Vec<_> = keys.into_iter().filter(|key| !of_another(key)).collect();
        let n_keys = keys.len();
        keys.truncate(MAX_KEYS);
        Self { added, removed, keys, n_keys }
    }

    /// Whether the two say the same.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.n_keys == 0
    }
}

/// All that stands in a policy's files, as one table.
fn written(policy: &Policy) -> toml::Value {
    let mut all = toml::Table::new();
    // They were parsed once; a table that stands in two files was an error then.
    for text in policy.texts() {
        merge(&mut all, toml::from_str(text).unwrap_or_default());
    }
    toml::Value::Table(all)
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

fn compare(at: &str, before: &toml::Value, after: &toml::Value, keys: &mut BTreeSet<String>) {
    use toml::Value::{Array, Table};
    match (before, after) {
        (Table(before), Table(after)) => {
            for name in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
                let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                one(&at, before.get(name), after.get(name), keys);
            }
        }
        // Lists of tables by their places; lists of texts as one value.
        (Array(before), Array(after)) if before.iter().chain(after).all(toml::Value::is_table) => {
            for index in 0..before.len().max(after.len()) {
                one(&format!("{at}[{index}]"), before.get(index), after.get(index), keys);
            }
        }
        _ if before == after => {}
        _ => drop(keys.insert(at.to_owned())),
    }
}

fn one(at: &str, before: Option<&toml::Value>, after: Option<&toml::Value>, keys: &mut BTreeSet<String>) {
    match (before, after) {
        (Some(before), Some(after)) => compare(at, before, after, keys),
        (None, None) => {}
        _ => drop(keys.insert(at.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn between(before: &str, after: &str) -> Changes {
        let parse = |text: &str| Policy::parse(text, Path::new("p.toml")).unwrap_or_else(|errors| panic!("{errors}"));
        Changes::between(&parse(before), &parse(after))
    }

    #[test]
    fn tenants_and_keys_that_differ_are_named() {
        let before = "[tenant.a]\nscript = \"a.luau\"\n[tenant.a.limits]\ncpu = \"50 ms\"\n[tenant.a.allow.kv]\n\
            [[tenant.a.allow.http]]\nhosts = [\"https://a.example\"]\n[tenant.gone]\nscript = \"g.luau\"\n";
        let after = "# A comment.\n[tenant.new]\nscript = \"n.luau\"\n[tenant.a]\nscript = \"a.luau\"\n\
            [tenant.a.limits]\ncpu = \"60 ms\"\n[[tenant.a.allow.http]]\nhosts = [\"https://b.example\"]\n\
            [[tenant.a.allow.http]]\nhosts = [\"https://c.example\"]\n";
        let changes = between(before, after);
        assert_eq!((changes.added, changes.removed), (vec!["new".to_owned()], vec!["gone".to_owned()]));
        let expected =
            ["tenant.a.allow.http[0].hosts", "tenant.a.allow.http[1]", "tenant.a.allow.kv", "tenant.a.limits.cpu"];
        assert_eq!((changes.keys, changes.n_keys), (expected.map(str::to_owned).to_vec(), 4));
    }

    #[test]
    fn what_only_moved_is_no_change() {
        let before = "[tenant.a]\nscript = \"a.luau\"\nroutes = [\"/a\"]\n";
        let after = "\n# Moved.\n[tenant.a]\nroutes = [\"/a\"]\nscript = \"a.luau\"\n";
        assert!(between(before, after).is_empty());
    }
}
