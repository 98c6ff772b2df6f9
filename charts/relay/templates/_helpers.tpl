{{/* The first part of every object's name; with "-fanout-options" it may have 63 characters. */}}
{{- define "relay.fullname" -}}
{{- contains "relay" .Release.Name | ternary .Release.Name (printf "%s-relay" .Release.Name) | trunc 48 | trimSuffix "-" }}
{{- end }}

{{- define "relay.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/*
The helpers below take (list $ COMPONENT), COMPONENT being edge, fanout, auth,
feedsim or redis.
*/}}

{{- define "relay.name" -}}
{{ include "relay.fullname" (index . 0) }}-{{ index . 1 }}
{{- end }}

{{/* What selects the pods of a component. It must never change. */}}
{{- define "relay.selector" -}}
app.kubernetes.io/name: relay
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "relay.labels" -}}
{{- $ := index . 0 -}}
{{ include "relay.selector" . }}
app.kubernetes.io/version: {{ include "relay.tag" $ | trunc 63 | trimAll "-_." | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
app.kubernetes.io/part-of: relay
{{- end }}

{{- define "relay.metadata" -}}
name: {{ include "relay.name" . }}
namespace: {{ (index . 0).Release.Namespace }}
labels:
  {{- include "relay.labels" . | nindent 2 }}
{{- end }}

{{- define "relay.image" -}}
{{- $ := index . 0 -}}
image: {{ printf "%s/%s:%s" (trimSuffix "/" $.Values.image.registry) (index . 1) (include "relay.tag" $) | quote }}
imagePullPolicy: {{ $.Values.image.pullPolicy }}
{{- end }}

{{/* (list $ COMPONENT VALUES): the metadata of a pod; our labels win over podLabels. */}}
{{- define "relay.podMetadata" -}}
{{- $values := index . 2 -}}
labels:
  {{- $labels := include "relay.labels" . | fromYaml }}
  {{- toYaml (mergeOverwrite (deepCopy ($values.podLabels | default dict)) $labels) | nindent 2 }}
{{- with $values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* (list $ COMPONENT VALUES): where a pod may run and as whom. The group owns volumes, so that the program can write its database. */}}
{{- define "relay.pod" -}}
{{- $ := index . 0 -}}
{{- $values := index . 2 -}}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with $.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Pods of a component prefer different nodes and zones, those of a new version on their own. */}}
{{- define "relay.spread" -}}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels:
        {{- include "relay.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}

{{- define "relay.securityContext" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* (list SECRET KEY FILE VOLUME): a volume with one key of a Secret as one file. */}}
{{- define "relay.secretVolume" -}}
- name: {{ index . 3 }}
  secret:
    secretName: {{ index . 0 }}
    defaultMode: 0440
    items:
      - key: {{ index . 1 | quote }}
        path: {{ index . 2 }}
{{- end }}

{{/* A component's values: four fifths of its memory limit are for Go, the rest for what Go does not count, such as the buffers of sockets. */}}
{{- define "relay.memoryLimit" -}}
{{- $limit := dig "limits" "memory" "" .resources | toString -}}
{{- if regexMatch "^[0-9]+[MG]i$" $limit -}}
{{- $mib := regexFind "^[0-9]+" $limit | int -}}
{{- if hasSuffix "Gi" $limit }}{{ $mib = mul $mib 1024 }}{{ end -}}
- name: GOMEMLIMIT
  value: {{ div (mul $mib 4) 5 }}MiB
{{- end }}
{{- end }}

{{- define "relay.operationsArgs" -}}
- --operations-listen=:9090
- --log-level={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- end }}

{{- define "relay.redisArgs" -}}
- --redis-address={{ .Values.redis.address | default (printf "%s-redis:6379" (include "relay.fullname" .)) }}
{{- with .Values.redis.masterName }}
- --redis-master-name={{ . }}
{{- end }}
{{- if .Values.redis.tls }}
- --redis-tls
{{- end }}
{{- with .Values.redis.username }}
- --redis-username={{ . }}
{{- end }}
{{- if .Values.redis.existingSecret }}
- --redis-password-file=/etc/relay/redis/password
{{- end }}
{{- end }}

{{/* Where redis.existingSecret is given: its mount, and its volume. */}}
{{- define "relay.redisMount" -}}
- {name: redis, mountPath: /etc/relay/redis, readOnly: true}
{{- end }}

{{- define "relay.redisVolume" -}}
{{- include "relay.secretVolume" (list .Values.redis.existingSecret .Values.redis.key "password" "redis") }}
{{- end }}

{{/* The seconds a start may take. Probes on the operations port. Liveness depends on nothing outside the pod. */}}
{{- define "relay.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: operations}
  periodSeconds: 1
  timeoutSeconds: 5
  failureThreshold: {{ . }}
livenessProbe:
  httpGet: {path: /livez, port: operations}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: operations}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end }}

{{/* Seconds from the end of an edge's endpoint to its kill: its sleep, its window, 5 s for the last closes, 15 s for traces, the operations listener and a busy node. */}}
{{- define "relay.edgeGrace" -}}
{{ add .Values.edge.preStopSleep .Values.edge.drainWindow 5 15 }}
{{- end }}
