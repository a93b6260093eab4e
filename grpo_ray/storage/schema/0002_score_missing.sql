-- A verifier that gives no verdict, or a judge that can't be reached, leaves a score missing.
ALTER TABLE score ALTER COLUMN correct DROP NOT NULL;
