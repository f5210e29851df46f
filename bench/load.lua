-- wrk calls this at the end; one line of JSON for lib/load.py.

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '\n{"requests": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "errors": %d}\n',
        summary.requests,
        summary.duration,
        latency:percentile(50),
        latency:percentile(99),
        errors.connect + errors.read + errors.write + errors.status + errors.timeout
    ))
end
