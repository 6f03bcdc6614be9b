-- Deletes the entries of a stream that nobody needs any more.
--
-- KEYS: stream. ARGV: retention in ms, '' for none; after how many deleted entries to stop.
-- With a retention: what is older. Else what all groups have acknowledged; without any group
-- nothing. Returns how many were deleted; fewer than asked for: everything.
local function less(a, b)
  local function part(id) return string.match(id, '^(%d+)-(%d+)$') end
  local a_ms, a_seq = part(a)
  local b_ms, b_seq = part(b)
  -- 64 bits do not fit into a Lua number: decimals compare by length, then as text.
  if #a_ms ~= #b_ms then return #a_ms < #b_ms end
  if a_ms ~= b_ms then return a_ms < b_ms end
  if #a_seq ~= #b_seq then return #a_seq < #b_seq end
  return a_seq < b_seq
end

local function after(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  -- A foreign id beyond what a number holds exactly: keep that one entry.
  if #seq > 15 then return id end
  return ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
end

local function oldest_needed(stream)
  local oldest
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local facts = {}
    for i = 1, #info, 2 do facts[info[i]] = info[i + 1] end
    local needs = after(facts['last-delivered-id'])
    if facts['pending'] > 0 then
      needs = redis.call('XPENDING', stream, facts['name'])[2]
    end
    if not oldest or less(needs, oldest) then oldest = needs end
  end
  return oldest
end

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local from
if ARGV[1] == '' then
  from = oldest_needed(KEYS[1])
else
  local time = redis.call('TIME')
  from = string.format('%.0f-0', time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[1])
end
if not from then return 0 end
local most, deleted = tonumber(ARGV[2]), 0
while deleted < most do
  -- Whole nodes, as many as the limit has room for; none when less than a node is left.
  local some = redis.call('XTRIM', KEYS[1], 'MINID', '~', from, 'LIMIT', most)
  if some == 0 then return deleted + redis.call('XTRIM', KEYS[1], 'MINID', from) end
  deleted = deleted + some
end
return deleted
