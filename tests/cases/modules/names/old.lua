return "old.lua"
