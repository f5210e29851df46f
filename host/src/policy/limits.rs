//! How much one tenant may use: `[tenant.NAME.limits]`.
//!
//! Only the numbers live here; [`crate::limits`] counts against them.

use std::{fmt, num::NonZeroU32, ops::RangeInclusive, time::Duration};

use toml::Spanned;

use super::{
    error::{Broken, Errors, child},
    keys::TableToml,
    raw::{LimitsToml, Text},
    units,
};

/// Least memory: below it the VM itself does not start.
pub(super) const MIN_MEMORY_BYTES: u64 = 8 << 20;
/// Most memory. One bulk operation over all of it cannot be interrupted, so it bounds the delay of a kill.
pub(super) const MAX_MEMORY_BYTES: u64 = 64 << 20;
/// Least time of anything.
pub(super) const MIN_TIME: Duration = Duration::from_millis(1);
pub(super) const MAX_CPU: Duration = Duration::from_secs(5 * 60);
pub(super) const MAX_WALL: Duration = Duration::from_secs(60 * 60);
pub(super) const MAX_PENDING_OPERATIONS: u32 = 1_000;
pub(super) const MAX_TASKS: u32 = 10_000;
pub(super) const MAX_TIMERS: u32 = 10_000;
pub(super) const MAX_CONNECTIONS: u32 = 10_000;
pub(super) const MAX_SUBREQUESTS: u32 = 10_000;
/// No less, for a handshake takes as much.
pub(super) const TRAFFIC: RangeInclusive<u64> = 1 << 10..=64 << 30;
/// Longest body that a policy may allow: it lies in the memory of a VM, twice when it is handed over.
pub const MAX_BODY_BYTES: usize = 32 << 20;
pub(super) const BODY: RangeInclusive<u64> = 0..=MAX_BODY_BYTES as u64;
/// Bytes that may be logged in the time of the rate.
pub(super) const LOG: RangeInclusive<u64> = 1 << 10..=16 << 20;
pub(super) const LOG_LINE: RangeInclusive<u64> = 80..=neoc_abi::log::MAX_LINE_BYTES as u64;
pub(super) const STORE: RangeInclusive<u64> = 1 << 10..=1 << 40;
pub(super) const VALUE: RangeInclusive<u64> = 1..=10 << 20;
pub(super) const FILES: RangeInclusive<u64> = 1 << 10..=16 << 40;
pub(super) const MAX_FS_FILES: u32 = 10_000_000;
pub(super) const MAX_WEIGHT: u32 = 100;
/// Most events that a rate counts.
pub(super) const MAX_RATE: u32 = 1_000_000;

/// What one tenant may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Memory of one request, in bytes. 8 MiB to 64 MiB.
    pub memory_bytes: u64,
    /// Computing time of one request. Time parked in I/O is not counted.
    pub cpu: Duration,
    /// Time from a request's start to its end, with everything.
    pub wall: Duration,
    /// Inbound requests of the tenant. Over it: 429.
    pub requests: Rate,
    /// Broker operations of the tenant. Over it: an error that the script can catch.
    pub operations: Rate,
    /// Operations of one VM under way at once, timers not counted. 1 to 1,000.
    pub pending_operations: NonZeroU32,
    /// Tasks of one VM alive at once, the first one not counted. 1 to 10,000.
    pub tasks: NonZeroU32,
    /// Timers of one VM that run at once. 1 to 10,000.
    pub timers: NonZeroU32,
    /// Outbound connections of the tenant at once. Over it HTTP waits its turn, and a socket is refused.
    pub connections: NonZeroU32,
    /// Outbound requests and connections of one request, redirects counted. 1 to 10,000.
    pub subrequests: NonZeroU32,
    /// Bytes that one request may send to others, over all its calls. 1 KiB to 64 GiB.
    pub egress_bytes: u64,
    /// Bytes that one request may receive from others, over all its calls. 1 KiB to 64 GiB.
    pub ingress_bytes: u64,
    /// Longest body of a request, a client's and the script's own. 0 B to 32 MiB.
    pub request_body_bytes: u64,
    /// Longest body of a response, an upstream's and the script's own, when it is unpacked. 0 B to 32 MiB.
    pub response_body_bytes: u64,
    /// Bytes that the tenant may log. 1 KiB to 16 MiB in each second, minute or hour.
    pub log: Rate,
    /// Longest line of the log, in bytes; a longer one is cut. 80 B to 64 KiB, and not over `log`.
    pub log_line_bytes: u32,
    /// Bytes in the tenant's store, keys and values. 1 KiB to 1 TiB.
    pub kv_bytes: u64,
    /// Longest value in the store. 1 B to 10 MiB.
    pub kv_value_bytes: u64,
    /// Bytes in the tenant's granted directories. 1 KiB to 16 TiB.
    pub fs_bytes: u64,
    /// Files and directories in the tenant's granted directories. 1 to 10,000,000.
    pub fs_files: u64,
    /// Time slices per turn, when several tenants have work: its share of the script workers. 1 to 100.
    pub weight: NonZeroU32,
}

/// So many events, or bytes, in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// 1 to 1,000,000 events, or bytes.
    pub count: NonZeroU32,
    /// One second, minute or hour.
    pub per: Duration,
}

// === impl Limits ===

impl Default for Limits {
    /// Enough for a page that fetches a few others, too little to hurt a neighbour.
    fn default() -> Self {
        Self {
            memory_bytes: 32 << 20,
            cpu: Duration::from_millis(50),
            wall: Duration::from_secs(30),
            requests: Rate::per_second(const { NonZeroU32::new(200).expect("200 is not 0") }),
            operations: Rate::per_second(const { NonZeroU32::new(1000).expect("1000 is not 0") }),
            pending_operations: const { NonZeroU32::new(64).expect("64 is not 0") },
            tasks: const { NonZeroU32::new(1000).expect("1000 is not 0") },
            timers: const { NonZeroU32::new(1000).expect("1000 is not 0") },
            connections: const { NonZeroU32::new(32).expect("32 is not 0") },
            subrequests: const { NonZeroU32::new(50).expect("50 is not 0") },
            egress_bytes: 100 << 20,
            ingress_bytes: 500 << 20,
            request_body_bytes: 10 << 20,
            response_body_bytes: 10 << 20,
            log: Rate::per_second(const { NonZeroU32::new(64 << 10).expect("64 KiB is not 0") }),
            log_line_bytes: 8 << 10,
            kv_bytes: 100 << 20,
            kv_value_bytes: 1 << 20,
            fs_bytes: 100 << 20,
            fs_files: 10_000,
            weight: NonZeroU32::MIN,
        }
    }
}

impl Limits {
    /// The policy key with this name: the label of its metrics.
    pub fn key(name: &str) -> Option<&'static str> {
        LimitsToml::KEYS.iter().find(|key| key.name == name).map(|key| key.name)
    }
}

impl Rate {
    /// So many events each second.
    pub const fn per_second(count: NonZeroU32) -> Self {
        Self { count, per: Duration::from_secs(1) }
    }
}

impl fmt::Display for Rate {
    /// As the file has it, for events: `100/h`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, units::shown_per(self.per))
    }
}

/// Converts the table; an absent key takes its default.
pub(super) fn enforce(raw: LimitsToml, at: &str, errors: &mut Errors<'_>) -> Limits {
    let LimitsToml {
        memory,
        cpu,
        wall,
        requests,
        operations,
        pending_operations,
        tasks,
        timers,
        connections,
        subrequests,
        egress,
        ingress,
        request_body,
        response_body,
        log,
        log_line,
        kv,
        kv_value,
        fs,
        fs_files,
        weight,
    } = raw;
    let default = Limits::default();
    let mut table = Table { at, errors };
    let wall_written = wall.is_some();
    let wall = table.text("wall", wall, self::wall);
    // A wall that is wrong says nothing about the computing time.
    let cpu_ceiling = if wall_written { wall.unwrap_or(MAX_WALL) } else { default.wall };
    let cpu = table.text("cpu", cpu, |text| self::cpu(text, cpu_ceiling));
    let log = table.text("log", log, units::byte_rate).unwrap_or(default.log);
    let log_line = table.text("log_line", log_line, |text| self::log_line(text, log));
    Limits {
        memory_bytes: table.text("memory", memory, self::memory).unwrap_or(default.memory_bytes),
        // A default is lowered to what the operator wrote; what the operator wrote is never changed.
        cpu: cpu.unwrap_or(default.cpu.min(cpu_ceiling)),
        wall: wall.unwrap_or(default.wall),
        requests: table.text("requests", requests, units::rate).unwrap_or(default.requests),
        operations: table.text("operations", operations, units::rate).unwrap_or(default.operations),
        pending_operations: table
            .number("pending_operations", pending_operations, 1..=MAX_PENDING_OPERATIONS, "operations", "64")
            .unwrap_or(default.pending_operations),
        tasks: table.number("tasks", tasks, 1..=MAX_TASKS, "tasks", "1000").unwrap_or(default.tasks),
        timers: table.number("timers", timers, 1..=MAX_TIMERS, "timers", "1000").unwrap_or(default.timers),
        connections: table
            .number("connections", connections, 1..=MAX_CONNECTIONS, "connections", "32; to allow none, grant no http")
            .unwrap_or(default.connections),
        subrequests: table
            .number("subrequests", subrequests, 1..=MAX_SUBREQUESTS, "requests", "50; to allow none, grant no http")
            .unwrap_or(default.subrequests),
        egress_bytes: table.bytes("egress", egress, TRAFFIC, "\"100 MiB\"").unwrap_or(default.egress_bytes),
        ingress_bytes: table.bytes("ingress", ingress, TRAFFIC, "\"500 MiB\"").unwrap_or(default.ingress_bytes),
        request_body_bytes: table
            .bytes("request_body", request_body, BODY, "\"10 MiB\"")
            .unwrap_or(default.request_body_bytes),
        response_body_bytes: table
            .bytes("response_body", response_body, BODY, "\"10 MiB\"")
            .unwrap_or(default.response_body_bytes),
        log,
        log_line_bytes: log_line.unwrap_or(default.log_line_bytes.min(log.count.get())),
        kv_bytes: table.bytes("kv", kv, STORE, "\"100 MiB\"").unwrap_or(default.kv_bytes),
        kv_value_bytes: table.bytes("kv_value", kv_value, VALUE, "\"1 MiB\"").unwrap_or(default.kv_value_bytes),
        fs_bytes: table.bytes("fs", fs, FILES, "\"100 MiB\"").unwrap_or(default.fs_bytes),
        fs_files: table
            .number("fs_files", fs_files, 1..=MAX_FS_FILES, "files and directories", "10000")
            .map_or(default.fs_files, |number| number.get().into()),
        weight: table.number("weight", weight, 1..=MAX_WEIGHT, "turns", "1").unwrap_or(default.weight),
    }
}

/// The table, and where what is wrong with it goes.
struct Table<'a, 's> {
    at: &'a str,
    errors: &'a mut Errors<'s>,
}

impl Table<'_, '_> {
    fn text<T>(
        &mut self,
        key: &str,
        written: Option<Text>,
        parse: impl FnOnce(&str) -> Result<T, Broken>,
    ) -> Option<T> {
        self.errors.value(&child(self.at, key), written.as_ref(), |text| parse(text))
    }

    fn bytes(&mut self, key: &str, written: Option<Text>, range: RangeInclusive<u64>, example: &str) -> Option<u64> {
        self.text(key, written, |text| self::bytes(text, &range, example))
    }

    fn number(
        &mut self,
        key: &str,
        written: Option<Spanned<i64>>,
        range: RangeInclusive<u32>,
        what: &str,
        example: &str,
    ) -> Option<NonZeroU32> {
        self.errors.value(&child(self.at, key), written.as_ref(), |n| self::number(*n, &range, what, example))
    }
}

fn number(written: i64, range: &RangeInclusive<u32>, what: &str, example: &str) -> Result<NonZeroU32, Broken> {
    let number = u32::try_from(written).ok().filter(|number| range.contains(number)).and_then(NonZeroU32::new);
    number.ok_or_else(|| Broken::new(format!("{} to {} {what}", range.start(), range.end())).write(example))
}

fn bytes(text: &str, range: &RangeInclusive<u64>, example: &str) -> Result<u64, Broken> {
    let bytes = units::bytes(text, example)?;
    if range.contains(&bytes) {
        return Ok(bytes);
    }
    let (least, most) = (units::shown_bytes(*range.start()), units::shown_bytes(*range.end()));
    Err(Broken::new(format!("{least} to {most}")).write(example))
}

fn log_line(text: &str, log: Rate) -> Result<u32, Broken> {
    let example = "\"8 KiB\"";
    let bytes = bytes(text, &LOG_LINE, example)?;
    // As many at once are the most that ever pass.
    match u32::try_from(bytes).ok().filter(|bytes| *bytes <= log.count.get()) {
        Some(bytes) => Ok(bytes),
        None => {
            let at_once = units::shown_bytes(log.count.get().into());
            Err(Broken::new(format!("more than the {at_once} of log: no such line would ever be written"))
                .help("raise log, or lower log_line to it"))
        }
    }
}

fn memory(text: &str) -> Result<u64, Broken> {
    let bytes = units::bytes(text, "\"32 MiB\"")?;
    if bytes > MAX_MEMORY_BYTES {
        return Err(Broken::new("at most 64 MiB per request").write("\"32 MiB\""));
    }
    if bytes < MIN_MEMORY_BYTES {
        return Err(Broken::new("at least 8 MiB, which the VM itself needs").write("\"32 MiB\""));
    }
    Ok(bytes)
}

fn cpu(text: &str, wall: Duration) -> Result<Duration, Broken> {
    let cpu = at_most(text, MAX_CPU, "at most 5 m of computing per request", "\"50 ms\"")?;
    if cpu > wall {
        // Never reached: the operator meant something else by one of the two.
        let help = "raise wall, or lower cpu to it";
        return Err(Broken::new(format!("more than wall, which is {}", units::shown_time(wall))).help(help));
    }
    Ok(cpu)
}

fn wall(text: &str) -> Result<Duration, Broken> {
    at_most(text, MAX_WALL, "at most 60 m per request", "\"30 s\"")
}

fn at_most(text: &str, most: Duration, rule: &str, example: &str) -> Result<Duration, Broken> {
    let time = units::duration(text, example)?;
    if time.is_zero() {
        return Err(Broken::new("at least 1 ms: with no time nothing can run").write(example));
    }
    if time > most { Err(Broken::new(rule).write(example)) } else { Ok(time) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_lies_between_what_the_vm_needs_and_what_a_kill_can_wait_for() {
        for (text, accepted) in [
            ("0 B", false),
            ("1 B", false),
            ("4194303 B", false),
            ("8 MiB", true),
            ("64 MiB", true),
            ("67108865 B", false),
            ("1 GiB", false),
        ] {
            assert_eq!(memory(text).is_ok(), accepted, "{text}");
        }
    }

    #[test]
    fn times_have_a_floor_and_a_ceiling() {
        for (text, accepted) in [("0 ms", false), ("1 ms", true), ("60 m", true), ("3600001 ms", false)] {
            assert_eq!(wall(text).is_ok(), accepted, "wall {text}");
        }
        for (text, accepted) in [("0 s", false), ("1 ms", true), ("5 m", true), ("300001 ms", false)] {
            assert_eq!(cpu(text, MAX_WALL).is_ok(), accepted, "cpu {text}");
        }
    }

    #[test]
    fn computing_time_longer_than_the_request_may_last_is_a_mistake() {
        assert!(cpu("30 s", Duration::from_secs(30)).is_ok());
        assert!(cpu("30001 ms", Duration::from_secs(30)).is_err());
    }

    #[test]
    fn connections_are_counted_from_one() {
        for (number, accepted) in
            [(i64::MIN, false), (-1, false), (0, false), (1, true), (10_000, true), (10_001, false), (i64::MAX, false)]
        {
            assert_eq!(self::number(number, &(1..=MAX_CONNECTIONS), "", "").is_ok(), accepted, "{number}");
        }
    }

    #[test]
    fn sizes_have_a_floor_and_a_ceiling_and_an_error_that_says_so() {
        for (range, least, under, most, over) in [
            (TRAFFIC, "1 KiB", Some("1023 B"), "64 GiB", "65 GiB"),
            (BODY, "0 B", None, "32 MiB", "33554433 B"),
            (STORE, "1 KiB", Some("1023 B"), "1024 GiB", "1025 GiB"),
            (VALUE, "1 B", Some("0 B"), "10 MiB", "10485761 B"),
            (FILES, "1 KiB", Some("0 B"), "16384 GiB", "16385 GiB"),
            (LOG_LINE, "80 B", Some("79 B"), "64 KiB", "65537 B"),
        ] {
            assert!(bytes(least, &range, "").is_ok() && bytes(most, &range, "").is_ok(), "{least} {most}");
            for text in [under, Some(over), Some("18446744073709551615 B")].into_iter().flatten() {
                let broken = format!("{:?}", bytes(text, &range, "\"x\"").expect_err(text));
                assert!(broken.contains(&format!("{least} to {most}")), "{text}: {broken}");
            }
        }
    }

    #[test]
    fn a_line_longer_than_what_may_be_logged_at_once_is_a_mistake() {
        let log = units::byte_rate("1 KiB/s").expect("a rate");
        assert!(log_line("1 KiB", log).is_ok() && log_line("1025 B", log).is_err());
    }
}
