//! Memory for large copies on their way to or from the host.
//!
//! Rust aborts when it cannot allocate, which is a trap and the end of the instance. So large copies ask here
//! first, and a script gets "not enough memory" as an error that it can catch.

use mlua::{Lua, LuaString};

/// What the guest keeps for small things. Smaller copies need not ask.
pub const SMALL_BYTES: usize = 4096;

/// Makes sure that `bytes` can be allocated at once, if need be by collecting the script's garbage.
///
/// # Errors
/// [`mlua::Error::MemoryError`] when they cannot.
pub fn reserve(lua: &Lua, bytes: usize) -> mlua::Result<()> {
    if bytes <= SMALL_BYTES || is_free(bytes) {
        return Ok(());
    }
    lua.gc_collect()?;
    if is_free(bytes) {
        return Ok(());
    }
    Err(mlua::Error::MemoryError("not enough memory".to_owned()))
}

/// Whether there is so much in one piece. The piece is free again afterwards, for the copy itself.
fn is_free(bytes: usize) -> bool {
    Vec::<u8>::new().try_reserve_exact(bytes).is_ok()
}

/// Makes a string of the script's, if need be by collecting its garbage.
///
/// # Errors
/// [`mlua::Error::MemoryError`] when there is no memory for it.
pub fn string(lua: &Lua, bytes: &[u8]) -> mlua::Result<LuaString> {
    match lua.create_string(bytes) {
        Err(mlua::Error::MemoryError(_)) => {
            lua.gc_collect()?;
            lua.create_string(bytes)
        }
        made => made,
    }
}

/// Copies a string of the script's that goes to the host: room for the copy and for the message with it.
///
/// # Errors
/// As [`reserve`].
pub fn copy(lua: &Lua, text: &LuaString) -> mlua::Result<Vec<u8>> {
    let bytes = text.as_bytes();
    reserve(lua, bytes.len().saturating_mul(2))?;
    Ok(bytes.to_vec())
}
