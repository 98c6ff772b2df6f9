{{/* What the schema cannot say, all at once. Each line says what to do. */}}
{{- define "relay.validate" -}}
{{- $v := .Values }}
{{- $wrong := list }}
{{- if not $v.image.registry }}
{{- $wrong = append $wrong "image.registry is missing: where `make images KO_DOCKER_REPO=…` has pushed the images, such as registry.example.com/relay" }}
{{- end }}
{{- if not $v.upstream.existingSecret }}
{{- $wrong = append $wrong (printf "upstream.existingSecret is missing: make a Secret with the vendor's API key (kubectl create secret generic relay-upstream --from-file=%s=FILE) and name it" $v.upstream.key) }}
{{- end }}
{{- if not $v.auth.pepper.existingSecret }}
{{- $wrong = append $wrong (printf "auth.pepper.existingSecret is missing: make a Secret with 16 random bytes or more (openssl rand -hex 32 | kubectl create secret generic relay-pepper --from-file=%s=/dev/stdin), keep a copy, without it all keys are lost, and name it" $v.auth.pepper.key) }}
{{- end }}
{{- if not (or $v.redis.address $v.devRedis.enabled) }}
{{- $wrong = append $wrong "redis.address is missing: host:port of a Redis, or of Sentinels or Cluster nodes with commas between them; devRedis.enabled=true runs one to try the chart out" }}
{{- end }}
{{- if and $v.redis.address $v.devRedis.enabled }}
{{- $wrong = append $wrong "redis.address and devRedis.enabled=true are both given: choose one" }}
{{- end }}
{{- if and $v.redis.existingSecret (not $v.redis.address) }}
{{- $wrong = append $wrong "redis.existingSecret goes with redis.address: the Redis of devRedis.enabled has no password" }}
{{- end }}
{{- if and $v.redis.username (not $v.redis.existingSecret) }}
{{- $wrong = append $wrong (printf "redis.username needs redis.existingSecret: make a Secret with the password of that user (kubectl create secret generic relay-redis --from-file=%s=FILE) and name it" $v.redis.key) }}
{{- end }}
{{- if gt (int $v.auth.replicas) 1 }}
{{- $wrong = append $wrong (printf "auth.replicas is %d, but its SQLite database has one writer: leave it at 1. While auth restarts, edges answer known keys from their cache" (int $v.auth.replicas)) }}
{{- end }}
{{- if not (or $v.auth.persistence.existingClaim $v.auth.persistence.ephemeral) }}
{{- $wrong = append $wrong "auth.persistence.existingClaim is missing: make a PersistentVolumeClaim (ReadWriteOnce, 1Gi) for users and keys and name it; auth.persistence.ephemeral=true does without, and loses them with each pod" }}
{{- end }}
{{- if and $v.auth.persistence.existingClaim $v.auth.persistence.ephemeral }}
{{- $wrong = append $wrong "auth.persistence.existingClaim and auth.persistence.ephemeral=true are both given: choose one" }}
{{- end }}
{{- with $v.fanout.lease }}
{{- $least := addf (divf .renewDeadline 2) .retryPeriod 2 }}
{{- if lt (float64 .duration) $least }}
{{- $wrong = append $wrong (printf "fanout.lease.duration is %v, must be at least %v: retryPeriod and half of renewDeadline, so that a renewal may hang once, and 2 to end a connection that is being made before another fanout may make one" .duration $least) }}
{{- end }}
{{- if le (float64 .duration) (float64 .renewDeadline) }}
{{- $wrong = append $wrong (printf "fanout.lease.duration is %v, must be more than renewDeadline" .duration) }}
{{- end }}
{{- if not (gt (mulf 10 .renewDeadline) (mulf 12 .retryPeriod)) }}
{{- $wrong = append $wrong "fanout.lease.renewDeadline must be longer than 1.2 times retryPeriod" }}
{{- end }}
{{- end }}
{{- range list "edge --drain-window edge.drainWindow" "fanout --lease- fanout.lease" "fanout --leader fanout.leader" }}
{{- $part := splitList " " . }}
{{- range (index $v (index $part 0)).extraArgs }}
{{- if hasPrefix (index $part 1) . }}
{{- $wrong = append $wrong (printf "%s.extraArgs has %s: use %s, from which the chart computes more" (index $part 0) . (index $part 2)) }}
{{- end }}
{{- end }}
{{- end }}
{{- if $wrong }}
{{- fail (printf "\n\n  - %s\n" (join "\n  - " $wrong)) }}
{{- end }}
{{- end }}
