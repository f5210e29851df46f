//! Whether the machine has room for as many instances as the policy asks for.
//!
//! Asked at the start: what a system refuses later ends requests, one by one, under load.

use std::fs;

use rustix::process::{Resource, getrlimit};

/// Address space that a VM takes, in bytes: a memory of 4 GiB with its guards, one for its exceptions, and a stack.
/// Measured: 4.031 GiB.
const SLOT_ADDRESSES_BYTES: u64 = 4_400_000_000;

/// Mappings of a VM: 6, and 2 more where it has grown and where it has thrown. Measured.
const SLOT_MAPPINGS: u64 = 8;

/// Mappings of the rest of the process: libraries, threads, the store.
const OTHER_MAPPINGS: u64 = 1000;

/// What a small request holds while it waits, in bytes. Measured: 160 KiB in its first second, half of it later.
const WAITING_BYTES: u64 = 200 * 1024;

/// What the machine lets this process have. None: no limit, or unknown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Room {
    address_space_bytes: Option<u64>,
    n_mappings: Option<u64>,
    memory_bytes: Option<u64>,
}

/// Why a policy's instances do not fit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// Of address space.
    #[error(
        "host.instances = {instances} needs {needed} GB of address space, and this process may have {room} GB; lower it to {most}, or raise the limit (ulimit -v)"
    )]
    AddressSpace {
        /// What was asked for.
        instances: u32,
        /// In 10^9 bytes.
        needed: u64,
        /// In 10^9 bytes.
        room: u64,
        /// What fits.
        most: u64,
    },
    /// Of mappings.
    #[error(
        "host.instances = {instances} needs {needed} memory mappings, and a process may have {room}; lower it to {most}, or raise the limit (sysctl vm.max_map_count={needed})"
    )]
    Mappings {
        /// What was asked for.
        instances: u32,
        /// How many.
        needed: u64,
        /// How many there may be.
        room: u64,
        /// What fits.
        most: u64,
    },
}

impl Room {
    /// As the system says.
    pub fn of_this_process() -> Self {
        let number = |text: &str| text.trim().parse().ok();
        let available = |table: String| {
            let line = table.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
            number(line.trim_end_matches("kB")).map(|kibibytes: u64| kibibytes.saturating_mul(1024))
        };
        Self {
            address_space_bytes: getrlimit(Resource::As).current,
            n_mappings: fs::read_to_string("/proc/sys/vm/max_map_count").ok().and_then(|text| number(&text)),
            memory_bytes: fs::read_to_string("/proc/meminfo").ok().and_then(available),
        }
    }

    /// Judges so many instances.
    ///
    /// # Errors
    /// When the system would refuse some of them.
    pub fn check(self, instances: u32) -> Result<(), Shortage> {
        let wanted = u64::from(instances);
        if let Some(room) = self.address_space_bytes {
            let most = room / SLOT_ADDRESSES_BYTES;
            if wanted > most {
                let needed = wanted.saturating_mul(SLOT_ADDRESSES_BYTES).div_ceil(1_000_000_000);
                return Err(Shortage::AddressSpace { instances, needed, room: room / 1_000_000_000, most });
            }
        }
        if let Some(room) = self.n_mappings {
            let most = room.saturating_sub(OTHER_MAPPINGS) / SLOT_MAPPINGS;
            if wanted > most {
                let needed = wanted.saturating_mul(SLOT_MAPPINGS).saturating_add(OTHER_MAPPINGS);
                return Err(Shortage::Mappings { instances, needed, room, most });
            }
        }
        Ok(())
    }

    /// How many instances can wait at once in the memory that is free now, if that is less than `instances`.
    pub fn fewer_waiting(self, instances: u32) -> Option<u64> {
        let most = self.memory_bytes? / WAITING_BYTES;
        (most < u64::from(instances)).then_some(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    #[test]
    fn the_default_fits_where_nothing_is_known_and_where_a_kernel_has_its_defaults() {
        let kernel = Room { n_mappings: Some(65_530), ..Room::default() };
        for room in [Room::default(), kernel] {
            assert_eq!(room.check(1000), Ok(()));
        }
        assert_eq!(kernel.check(8066), Ok(()));
    }

    #[test]
    fn what_does_not_fit_is_said_with_the_knob_and_with_what_would() {
        for (room, instances, expected) in [
            (
                Room { address_space_bytes: Some(100 * GB), ..Room::default() },
                23,
                "host.instances = 23 needs 102 GB of address space, and this process may have 100 GB; lower it to 22, or raise the limit (ulimit -v)",
            ),
            (
                Room { n_mappings: Some(65_530), ..Room::default() },
                8067,
                "host.instances = 8067 needs 65536 memory mappings, and a process may have 65530; lower it to 8066, or raise the limit (sysctl vm.max_map_count=65536)",
            ),
            (
                Room { n_mappings: Some(10), ..Room::default() },
                1,
                "host.instances = 1 needs 1008 memory mappings, and a process may have 10; lower it to 0, or raise the limit (sysctl vm.max_map_count=1008)",
            ),
        ] {
            assert_eq!(room.check(instances).map_err(|shortage| shortage.to_string()), Err(expected.to_owned()));
        }
    }

    #[test]
    fn little_memory_says_how_many_can_wait() {
        let room = Room { memory_bytes: Some(GB), ..Room::default() };
        assert_eq!((room.fewer_waiting(4882), room.fewer_waiting(4883)), (None, Some(4882)));
        assert_eq!(Room::default().fewer_waiting(u32::MAX), None);
    }

    #[test]
    fn this_machine_says_what_it_has() {
        let room = Room::of_this_process();
        assert!(room.memory_bytes.is_some() && room.n_mappings.is_some(), "{room:?}");
    }
}
