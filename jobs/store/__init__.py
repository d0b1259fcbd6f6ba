"""The only place that executes SQL: one function per verb.

submission   a validated file becomes a job
publishing   which shards want a message
leases       claim, renew, finish, give back
joining      which shard shares batches with those that are held
recording    results and timings, a micro-batch at a time
recovery     expired leases, prompts that kill their worker
control      cancel and retry
repair       jobs that do not agree with their shards
reading      how far jobs are
results      what became of the prompts
workers      who is alive and what it holds

Lock order, everywhere: the job's row before its shards'.
"""
