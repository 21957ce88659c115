{{- /* The component whose settings, certificates, nodes and proxies a client's pod shares: the consumers, else the hub's
service. */}}
{{- define "rabbit2docker.clientLike" -}}
{{- ternary "consumer" "hubService" .Values.consumer.enabled }}
{{- end }}

{{- /* The Secret with RabbitMQ's URL for requests: that of the hub's service, whose user may make some, else that of the
consumers; as a mapping of existingSecret and urlKey. */}}
{{- define "rabbit2docker.requestSecret" -}}
{{- $own := .Values.hubService.amqp }}
{{- if and .Values.hubService.enabled $own.existingSecret }}
{{- toYaml (pick $own "existingSecret" "urlKey") }}
{{- else }}
{{- toYaml (pick .Values.amqp "existingSecret" "urlKey") }}
{{- end }}
{{- end }}

{{- /* The specification of a pod that runs one command of the command line, as a client of RabbitMQ without access to the
cluster. Takes a mapping: root, name, args, amqp (existingSecret, urlKey), settings (a ConfigMap), env (a list), resources. */}}
{{- define "rabbit2docker.clientPod" -}}
{{- $root := .root }}
{{- $component := include "rabbit2docker.clientLike" $root }}
{{- $like := get $root.Values $component -}}
restartPolicy: Never
automountServiceAccountToken: false
# Environment variables of a Service named rabbit2docker would be read as settings.
enableServiceLinks: false
{{- include "rabbit2docker.imagePullSecrets" $root }}
securityContext:
  {{- toYaml $like.podSecurityContext | nindent 2 }}
{{- with $like.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $like.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: {{ .name }}
    {{- if eq $component "consumer" }}
    image: {{ include "rabbit2docker.image" $root | quote }}
    {{- else }}
    image: {{ include "rabbit2docker.hubImage" $root | quote }}
    {{- end }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    args:
      {{- toYaml .args | nindent 6 }}
    env:
      - name: RABBIT2DOCKER_CONFIG
        value: /etc/rabbit2docker/settings/settings.yaml
      {{- include "rabbit2docker.secretVariable" (list "RABBIT2DOCKER_AMQP__URL" .amqp.existingSecret .amqp.urlKey) | nindent 6 }}
      {{- with .env }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
      {{- with $like.extraEnv }}
      {{- include "rabbit2docker.extraEnv" (list $root .) | nindent 6 }}
      {{- end }}
    {{- with $like.extraEnvFrom }}
    envFrom:
      {{- include "rabbit2docker.evaluated" (list $root .) | nindent 6 }}
    {{- end }}
    resources:
      {{- toYaml .resources | nindent 6 }}
    securityContext:
      {{- toYaml $like.containerSecurityContext | nindent 6 }}
    volumeMounts:
      - name: settings
        mountPath: /etc/rabbit2docker/settings
        readOnly: true
      - name: tmp
        mountPath: /tmp
      {{- with $like.extraVolumeMounts }}
      {{- include "rabbit2docker.evaluated" (list $root .) | nindent 6 }}
      {{- end }}
volumes:
  - name: settings
    configMap:
      name: {{ .settings }}
  - name: tmp
    emptyDir: {}
  {{- with $like.extraVolumes }}
  {{- include "rabbit2docker.evaluated" (list $root .) | nindent 2 }}
  {{- end }}
{{- end }}
