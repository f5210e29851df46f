-- Tarantool: one LuaJIT VM for all requests, a fiber per connection; no sandbox, no limits.
-- Debian ships no HTTP server for it, so this speaks just enough HTTP over its own sockets.

local fiber = require("fiber")
local socket = require("socket")
local client = require("http.client").new({ max_connections = 512 })

local UPSTREAM = "http://127.0.0.1:@upstream_port@"

local function body(path)
    if path == "/outbound" then
        return client:get(UPSTREAM .. path).body
    end
    if path == "/wait" then
        fiber.sleep(@wait_s@)
    end
    return "hello " .. path
end

local function serve(connection)
    connection:nonblock(true)
    connection:setsockopt("SOL_TCP", "TCP_NODELAY", true)
    while true do
        local head = connection:read("\r\n\r\n")
        if head == nil or head == "" then
            return
        end
        local answer = body(head:match("^%u+ (%S+) "))
        connection:write("HTTP/1.1 200 OK\r\ncontent-length: " .. #answer .. "\r\n\r\n" .. answer)
    end
end

assert(socket.tcp_server("127.0.0.1", @port@, { handler = serve, backlog = 4096 }))
