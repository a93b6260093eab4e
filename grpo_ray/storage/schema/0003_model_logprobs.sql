-- The sampled tokens' log-probabilities under the bare model, in nats; empty where nobody kept them.
ALTER TABLE rollout ADD COLUMN model_logprobs float8[] NOT NULL DEFAULT '{}';
