-- Adds messages to the streams of one topic, in order, up to the first that cannot be added.
--
-- KEYS: meta, floor, the two halves of the guard, then the streams used.
-- ARGV: partitions the publisher counted with, its generation, the guard's window in ms (0: no
--       guard), number of messages n, n digests of (id, body), then for each message: index of
--       its stream among KEYS, number of words, and the words (field, value, ...).
-- Returns {'missing'}, {'partitions', actual} or {'stale', floor} where nothing was added;
--       {'ok'}; {'failed', added, error} where message added + 1 could not be added;
--       {'late', error} where some or all were added and the guard does not know of it.

local partitions = redis.call('HGET', KEYS[1], 'partitions')
if not partitions then return {'missing'} end
if partitions ~= ARGV[1] then return {'partitions', partitions} end

-- A call given up by its publisher may arrive late, after younger ones: those raised the floor.
local generation, floor = tonumber(ARGV[2]), tonumber(redis.call('GET', KEYS[2]) or '0')
if generation < floor then return {'stale', floor} end

-- The guard: one set for the window that runs, one for the window before. A set lives until two
-- windows after its own; what has a window or less to live is of the same parity but outdated.
-- It is written to before the first entry is added, and that write is one that takes memory: what
-- is forbidden, or has no memory left, has to fail while nothing is stored.
local window, n = tonumber(ARGV[3]), tonumber(ARGV[4])
local known_now, known_before, current = {}, {}, nil
if window > 0 then
  local time = redis.call('TIME')
  local number = math.floor((time[1] * 1000 + math.floor(time[2] / 1000)) / window)
  current = KEYS[3 + number % 2]
  known_before = redis.call('SMISMEMBER', KEYS[4 - number % 2], unpack(ARGV, 5, 4 + n))
  local life = redis.call('PTTL', current)
  redis.call('SADD', current, '')
  if life >= 0 and life <= window then
    redis.call('UNLINK', current)
    redis.call('SADD', current, '')
  end
  redis.call('PEXPIREAT', current, string.format('%.0f', (number + 3) * window))
  known_now = redis.call('SMISMEMBER', current, unpack(ARGV, 5, 4 + n))
end
if generation > floor then redis.call('SET', KEYS[2], generation, 'PX', 3600000) end

local added, in_this_call, at, done, failure = {}, {}, 5 + n, 0, nil
for i = 1, n do
  local digest, last = ARGV[4 + i], at + 1 + tonumber(ARGV[at + 1])
  local known = window > 0
    and (known_now[i] == 1 or known_before[i] == 1 or in_this_call[digest])
  if not known then
    local reply = redis.pcall('XADD', KEYS[tonumber(ARGV[at])], '*', unpack(ARGV, at + 2, last))
    if type(reply) == 'table' and reply.err then
      failure = reply.err
      break
    end
    in_this_call[digest] = true
    added[#added + 1] = digest
  end
  done, at = i, last + 1
end

if window > 0 and #added > 0 then
  local reply = redis.pcall('SADD', current, unpack(added))
  if type(reply) == 'table' and reply.err then return {'late', reply.err} end
end
if failure then return {'failed', done, failure} end
return {'ok'}
