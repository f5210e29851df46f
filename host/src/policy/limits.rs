//! How much one tenant may use: `[tenant.NAME.limits]`.
//!
//! Only the numbers live here; [`crate::limits`] counts against them.

use std::{fmt, num::NonZeroU32, time::Duration};

use super::{
    error::{Broken, Errors, child},
    raw::LimitsToml,
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
pub(super) const MAX_CONNECTIONS: u32 = 10_000;
/// Longest body that a policy may allow: it lies in the memory of a VM, twice when it is handed over.
pub const MAX_BODY_BYTES: usize = 32 << 20;
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
    let LimitsToml { memory, cpu, wall, requests, operations, connections, weight } = raw;
    let default = Limits::default();
    let wall_written = wall.is_some();
    let wall = errors.value(&child(at, "wall"), wall.as_ref(), |text| self::wall(text));
    // A wall that is wrong says nothing about the computing time.
    let cpu_ceiling = if wall_written { wall.unwrap_or(MAX_WALL) } else { default.wall };
    let cpu = errors.value(&child(at, "cpu"), cpu.as_ref(), |text| self::cpu(text, cpu_ceiling));
    Limits {
        memory_bytes: errors
            .value(&child(at, "memory"), memory.as_ref(), |text| self::memory(text))
            .unwrap_or(default.memory_bytes),
        // A default is lowered to what the operator wrote; what the operator wrote is never changed.
        cpu: cpu.unwrap_or(default.cpu.min(cpu_ceiling)),
        wall: wall.unwrap_or(default.wall),
        requests: errors
            .value(&child(at, "requests"), requests.as_ref(), |text| units::rate(text))
            .unwrap_or(default.requests),
        operations: errors
            .value(&child(at, "operations"), operations.as_ref(), |text| units::rate(text))
            .unwrap_or(default.operations),
        connections: errors
            .value(&child(at, "connections"), connections.as_ref(), self::connections)
            .unwrap_or(default.connections),
        weight: errors.value(&child(at, "weight"), weight.as_ref(), self::weight).unwrap_or(default.weight),
        ..default
    }
}

fn weight(number: &i64) -> Result<NonZeroU32, Broken> {
    u32::try_from(*number)
        .ok()
        .filter(|number| *number <= MAX_WEIGHT)
        .and_then(NonZeroU32::new)
        .ok_or_else(|| Broken::new("a weight of 1 to 100").write("1"))
}

fn memory(text: &str) -> Result<u64, Broken> {
    let bytes = units::bytes(text)?;
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

fn connections(number: &i64) -> Result<NonZeroU32, Broken> {
    u32::try_from(*number)
        .ok()
        .filter(|number| *number <= MAX_CONNECTIONS)
        .and_then(NonZeroU32::new)
        .ok_or_else(|| Broken::new("1 to 10000 connections").write("32; to allow none, grant no http"))
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
            assert_eq!(connections(&number).is_ok(), accepted, "{number}");
        }
    }
}
