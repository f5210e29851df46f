//! The guest's data apart from its code: the bytes that its memory begins with.
//!
//! wasmtime would put them into each instance's memory in its own way; [`super::super::memory`] does it in ours.

use std::convert::Infallible;

use wasm_encoder::{
    DataSection, Module,
    reencode::{Error, Reencode},
};
use wasmparser::{Data, DataKind, DataSectionReader, Operator, Parser, Payload};

use super::super::memory::WASM_PAGE_BYTES;

/// Takes the data out of a guest: what is left is the same module, with a memory of zeros.
///
/// # Errors
/// When the bytes are no module with one memory, or its data does not lie at fixed places within it.
pub fn take_out(guest: &[u8]) -> wasmtime::Result<(Vec<u8>, Vec<u8>)> {
    let mut memory = Vec::new();
    for payload in Parser::new(0).parse_all(guest) {
        match payload? {
            Payload::MemorySection(memories) => {
                for declared in memories {
                    memory.resize(usize::try_from(declared?.initial)?.saturating_mul(WASM_PAGE_BYTES), 0);
                }
            }
            Payload::DataSection(section) => {
                for data in section {
                    place(&mut memory, &data?)?;
                }
            }
            _ => {}
        }
    }
    let mut module = Module::new();
    WithoutData
        .parse_core_module(&mut module, Parser::new(0), guest)
        .map_err(|error| wasmtime::Error::msg(format!("cannot take the data out of the guest: {error}")))?;
    Ok((module.finish(), memory))
}

fn place(memory: &mut [u8], data: &Data<'_>) -> wasmtime::Result<()> {
    if data.data.is_empty() {
        // What a snapshot leaves of data that is in the memory already.
        return Ok(());
    }
    let DataKind::Active { memory_index: 0, offset_expr } = &data.kind else {
        return Err(wasmtime::Error::msg("the guest has data that is not its memory's from the start"));
    };
    let Operator::I32Const { value } = offset_expr.get_operators_reader().read()? else {
        return Err(wasmtime::Error::msg("the guest has data at no fixed place"));
    };
    let start = usize::try_from(value.cast_unsigned())?;
    let target = start.checked_add(data.data.len()).and_then(|end| memory.get_mut(start..end));
    target.ok_or_else(|| wasmtime::Error::msg("the guest has data outside of its memory"))?.copy_from_slice(data.data);
    Ok(())
}

struct WithoutData;

impl Reencode for WithoutData {
    type Error = Infallible;

    fn data_count(&mut self, _count: u32) -> Result<u32, Error<Infallible>> {
        Ok(0)
    }

    fn parse_data_section(
        &mut self,
        _data: &mut DataSection,
        _section: DataSectionReader<'_>,
    ) -> Result<(), Error<Infallible>> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use wasm_encoder::{ConstExpr, MemorySection, MemoryType};

    use super::*;

    fn guest(add: impl FnOnce(&mut DataSection)) -> Vec<u8> {
        let mut memories = MemorySection::new();
        memories.memory(MemoryType { minimum: 2, maximum: None, memory64: false, shared: false, page_size_log2: None });
        let mut data = DataSection::new();
        add(&mut data);
        let mut module = Module::new();
        module.section(&memories).section(&data);
        module.finish()
    }

    #[test]
    fn the_memory_has_the_data_and_the_module_none() {
        let guest = guest(|data| {
            data.active(0, &ConstExpr::i32_const(3), [1, 2]).active(0, &ConstExpr::i32_const(131_071), [9]);
        });
        let (module, memory) = take_out(&guest).expect("has data");
        assert_eq!((memory.len(), &memory[2..6], memory[131_071]), (131_072, &[0, 1, 2, 0][..], 9));
        let (again, zeros) = take_out(&module).expect("is a module");
        assert_eq!((again, zeros), (module, vec![0; 131_072]));
    }

    #[test]
    fn data_that_is_not_in_the_memory_from_the_start_is_refused() {
        let passive = guest(|data| {
            data.passive([1]);
        });
        assert!(take_out(&passive).is_err());
        for (place, bytes) in [(131_071, &[1, 2][..]), (-1, &[1])] {
            let outside = guest(|data| {
                data.active(0, &ConstExpr::i32_const(place), bytes.iter().copied());
            });
            assert!(take_out(&outside).is_err(), "{place}");
        }
    }
}
