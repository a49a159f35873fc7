-- wrk script: sends the requests of a file in turn, each exactly as it stands there, and prints what
-- came of it as one line of JSON. The file holds each request behind a line with its length.

local requests, at = {}, 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  for size in function() return file:read("*l") end do
    requests[#requests + 1] = file:read(tonumber(size))
  end
  file:close()
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "microseconds": %d, "refused": %d, "failed": %d}\n',
    summary.requests, summary.duration, errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
