-- Counts what a group has not acknowledged, in bounded steps.
--
-- XINFO's own figure is missing or wrong once entries were deleted. Counted here from both ends:
-- the entries after the last one delivered, and those up to it; the end that finishes first
-- gives the answer, and one of them is short in practice.
--
-- KEYS: stream. ARGV: group, then where the earlier call stopped: an id ('' at first) and a count
-- from the front, an id and a count from the last delivered one.
-- Returns {1, pending, unread}, or {0, id, count, id, count} to go on with, {-1} without the group.
local BYTES, MOST = 4000000, 2000

local function size_of(entries)
  local bytes = 0
  for _, entry in ipairs(entries) do
    for _, word in ipairs(entry[2]) do bytes = bytes + #word end
  end
  return bytes
end

-- Returns {last id seen, how many, whether the range ended}, for BYTES of entries at most or so.
local function count(from, to)
  local entries = redis.call('XRANGE', KEYS[1], from, to, 'COUNT', 8)
  local seen, last = #entries, #entries > 0 and entries[#entries][1]
  if seen < 8 then return last, seen, true end
  local more = math.min(MOST, math.ceil(BYTES / (1 + size_of(entries) / 8)))
  entries = redis.call('XRANGE', KEYS[1], '(' .. last, to, 'COUNT', more)
  if #entries > 0 then last = entries[#entries][1] end
  return last, seen + #entries, #entries < more
end

local group
if redis.call('EXISTS', KEYS[1]) == 1 then
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local facts = {}
    for i = 1, #info, 2 do facts[info[i]] = info[i + 1] end
    if facts['name'] == ARGV[1] then group = facts end
  end
end
if not group then return {-1} end

local delivered = group['last-delivered-id']
local front, front_count = ARGV[2], tonumber(ARGV[3])
local back, back_count = ARGV[4], tonumber(ARGV[5])

local last, seen, ended = count('(' .. (back == '' and delivered or back), '+')
back, back_count = last or back, back_count + seen
if ended then return {1, group['pending'], back_count} end

last, seen, ended = count(front == '' and '-' or '(' .. front, delivered)
front, front_count = last or front, front_count + seen
if ended then
  return {1, group['pending'], redis.call('XLEN', KEYS[1]) - front_count}
end
return {0, front, front_count, back, back_count}
