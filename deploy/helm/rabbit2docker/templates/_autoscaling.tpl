{{- /* Non-empty if anything is scaled by the queues' length. */}}
{{- define "rabbit2docker.readsQueues" -}}
{{- $placeholders := .Values.placeholders }}
{{- if or (and .Values.consumer.enabled .Values.consumer.autoscaling.enabled) (and $placeholders.enabled $placeholders.autoscaling.enabled (include "rabbit2docker.managementKey" .)) }}true{{ end }}
{{- end }}

{{- define "rabbit2docker.managementSecret" -}}
{{- default .Values.amqp.existingSecret .Values.keda.existingSecret }}
{{- end }}

{{- define "rabbit2docker.managementKey" -}}
{{- default .Values.amqp.managementUrlKey .Values.keda.managementUrlKey }}
{{- end }}

{{- /* Limits and times of a ScaledObject. Takes a list: the root, and the values of its autoscaling. */}}
{{- define "rabbit2docker.scaledReplicas" -}}
{{- $keda := (first .).Values.keda -}}
minReplicaCount: {{ int (last .).minReplicas }}
maxReplicaCount: {{ int (last .).maxReplicas }}
pollingInterval: {{ int $keda.pollingInterval }}
cooldownPeriod: {{ int $keda.cooldownPeriod }}
{{- with (last .).behavior }}
advanced:
  horizontalPodAutoscalerConfig:
    behavior:
      {{- toYaml . | nindent 6 }}
{{- end }}
{{- end }}

{{- /* A trigger by all requests that wait: those that no consumer has taken yet, and those that wait for a slot. Takes a
list: the root, and the requests for each replica. */}}
{{- define "rabbit2docker.waitingTrigger" -}}
{{- $root := first . }}
{{- $_ := required "keda.managementUrlKey is not set, nor is amqp.managementUrlKey. One names the key of the URL of RabbitMQ's management API, which knows the length of queues." (include "rabbit2docker.managementKey" $root) -}}
- type: rabbitmq
  name: waiting
  authenticationRef: {name: {{ include "rabbit2docker.fullname" $root }}}
  metadata:
    protocol: http
    vhostName: {{ $root.Values.keda.virtualHost | quote }}
    queueName: '^builds\.(requests|requests\.bulk|waiting\..+\.(interactive|later|bulk))$'
    useRegex: "true"
    operation: sum
    pageSize: "500"
    excludeUnacknowledged: "true"
    mode: QueueLength
    value: {{ int (last .) | quote }}
{{- end }}
