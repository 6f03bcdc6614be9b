-- One beat of a member of an ordered group: says that it lives, renews what it owns, takes what
-- is free up to its fair share. All times are the server's.
--
-- KEYS: members, then the ownership of each partition.
-- ARGV: me, lease in ms, where to begin looking, then for each partition: the epoch under which I
--       own it (0: I do not); the highest epoch I ever saw of it; 'skip' to leave it to others, or
--       the end of a lease that nobody has renewed while I watched.
-- Returns {my share, {epoch if it is mine else 0, end of the lease} for each partition}.
local me, lease, first = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local until_ = string.format('%.0f', now + lease)
local n = #KEYS - 1

-- Before anything is added: a full server goes on after a first write that takes no memory.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], until_, me)
-- Left from before the clock was set back. A living member is back with its next beat.
redis.call('ZREMRANGEBYSCORE', KEYS[1], now + 10 * lease, '+inf')
local share = math.ceil(n / redis.call('ZCARD', KEYS[1]))

local mine, answer, free = 0, {}, {}
for i = 1, n do
  local known, seen, watched = ARGV[1 + 3 * i], tonumber(ARGV[2 + 3 * i]), ARGV[3 + 3 * i]
  local lasts = redis.call('HMGET', KEYS[1 + i], 'owner', 'epoch', 'until')
  local owner, epoch, ends = lasts[1] or '', lasts[2] or '0', lasts[3] or '0'
  if owner == me and epoch == known then
    redis.call('HSET', KEYS[1 + i], 'until', until_)
    mine = mine + 1
    answer[i] = {tonumber(epoch), until_}
  else
    answer[i] = {0, ends}
    -- What I own without knowing it was taken by a call whose reply I never saw.
    local over = owner == '' or owner == me or tonumber(ends) <= now or ends == watched
    if over and watched ~= 'skip' then
      free[i] = math.max(tonumber(epoch), seen) + 1
    end
  end
end

for step = 0, n - 1 do
  local i = 1 + (first + step) % n
  if free[i] and mine < share then
    local epoch = string.format('%.0f', free[i])
    redis.call('HSET', KEYS[1 + i], 'owner', me, 'epoch', epoch, 'until', until_)
    mine = mine + 1
    answer[i] = {free[i], until_}
  end
end
return {share, answer}
